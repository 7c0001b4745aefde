"""--measure: two steps of each stage on this machine, and what a plan learns from them: the rate that is reached, and
how much of the memory that was rehearsed is really taken.

The steps are those of one rank's share, on random tokens, each pair of them in a process of its own, since DeepSpeed
does not give back all that an engine holds:

    python -m dcr_ds.plan.measure REQUEST ANSWER        both are files of JSON
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcr_ds.errors import UserError
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import TrainingStage

TIMEOUT_SECONDS = 3600
FEWEST: dict[TrainingStage, int] = {"refine": 4, "align": 1}  # rows of a step: two of each class
ROWS_FOLLOWED = 4  # at once where the memory is followed: enough to compare, and little where there is little of it


@dataclass(frozen=True)
class Request:
    """Two steps to take.

    Attributes:
        recipe: of one rank's share, as JSON.
        source: the folder of the model.
        tokens: of each row.
        follow: note the memory, on few rows, rather than the time.
    """

    stage: TrainingStage
    recipe: dict[str, Any]
    source: str
    tokens: int
    follow: bool


@dataclass(frozen=True)
class Taken:
    """The second step.

    Attributes:
        request: what was asked for, with the recipe as it was resolved.
        seconds, tokens, peak: see `trial.Measured`.
        on_gpu, memory: where the step was taken: a GPU and its bytes, or a CPU and those of all its processes.
    """

    request: Request
    seconds: float
    tokens: int
    peak: int
    on_gpu: bool
    memory: int


@dataclass(frozen=True)
class Calibration:
    """What was learnt of a stage.

    Attributes:
        flops: operations a second that were reached, recomputed activations counted as work.
        memory_factor: how many times the rehearsed memory (activations, loss, temporaries) was taken.
        told: the same in words.
        on_gpu, memory_gib: where: a GPU and its memory, or a CPU and that of all its processes.
    """

    flops: float
    memory_factor: float
    told: str
    on_gpu: bool
    memory_gib: float


def take_steps(recipe: Recipe, source: Path, lengths: dict[str, int], gpus: int) -> dict[str, tuple[Taken, Taken]]:
    """Take the steps of each training stage of a recipe: for the time, and for the memory.

    Args:
        source: the folder of the model.
        lengths: mean tokens of a row, by stage; the memory is that of rows of max_length.
        gpus: over so many the recipe's batch is shared; one share is run.

    Raises:
        UserError: the steps failed; says how.
    """
    taken: dict[str, tuple[Taken, Taken]] = {}
    for stage in (stage for stage in FEWEST if stage in recipe.stages):
        share = _changed(recipe, stage, _share(recipe, stage, gpus))
        longest = getattr(recipe, stage).max_length
        rate = _run(Request(stage, share.model_dump(mode="json"), str(source), lengths[stage], follow=False))
        taken[stage] = rate, _run(Request(stage, rate.request.recipe, str(source), longest, follow=True))
    return taken


def learn(stage: str, rate: Taken, followed: Taken) -> Calibration:
    """Compare what was measured with what is planned for the same steps."""
    from dcr_ds.plan.tables import prose

    operations = _planned(rate).time.compute  # seconds, of one operation each
    flops = operations / rate.seconds
    held = _planned(followed).memory
    told = (
        f"Measured, {stage}: {rate.tokens} tokens in {rate.seconds:.2f} s, {flops / 1e12:.3g} TFLOP/s; peak memory of "
        f"rows of {followed.request.tokens} tokens {followed.peak / 2**30:.2f} GiB, planned {held.peak / 2**30:.2f}: "
    )
    factor = 1.0
    if held.peak_phase == "backward pass":
        factor = max(0.0, 1 + (followed.peak - held.peak) / held.rehearsed)
        told += f"activations and temporaries are planned {factor:.2f} times as large"
    else:
        told += "the optimizer's step has the peak, so nothing is learnt of activations"
    return Calibration(flops, factor, prose(told), rate.on_gpu, rate.memory / 2**30)


def _planned(taken: Taken):
    """What is planned for a step that was taken."""
    from dcr_ds.engine.config import read_config
    from dcr_ds.plan.choose import Cluster, Lengths, Stage, planned
    from dcr_ds.plan.clock import Rates
    from dcr_ds.plan.states import Zero

    request, one_a_second = taken.request, Rates(flops=1, node_link=1, network=1, mfu=1)
    recipe, source = Recipe.model_validate(request.recipe), Path(request.source)
    cluster = Cluster(1, 1, taken.memory / 2**30, one_a_second, on_gpu=taken.on_gpu)
    lengths = Lengths(request.tokens, request.tokens)
    stage = Stage(planned(recipe, source, cluster), source, request.stage, cluster, lengths)
    return stage.at(Zero.of(read_config(recipe)), stage.section.micro_batch)


def _run(request: Request) -> Taken:
    """Take the steps in a process of their own."""
    with tempfile.TemporaryDirectory(prefix="dcr-ds-plan") as folder:
        asked, answer = (Path(folder) / name for name in ("request.json", "answer.json"))
        asked.write_text(json.dumps(asdict(request)), encoding="utf-8")
        command = [sys.executable, "-m", "dcr_ds.plan.measure", str(asked), str(answer)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"plan: --measure: two steps of {request.stage} took more than {TIMEOUT_SECONDS} s; plan a smaller "
                f"{request.stage}.global_batch"
            ) from None
        if done.returncode:
            raise UserError(f"plan: --measure: the steps of {request.stage} could not be run: {_reason(done)}")
        told = json.loads(answer.read_text(encoding="utf-8"))
    return Taken(**told | {"request": Request(**told["request"])})


def _reason(done: subprocess.CompletedProcess) -> str:
    """The error of a process, without the trace before it."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"the process was ended by {name}{', maybe for want of memory' if name == 'SIGKILL' else ''}"
    lines = [line.removeprefix("[rank0]: ") for line in done.stderr.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception)\b", line)]
    return (told or lines or ["nothing was said"])[-1].removeprefix("error: ")[-400:]


def _share(recipe: Recipe, stage: TrainingStage, gpus: int) -> dict[str, Any]:
    """Fields of a stage that make a run on one rank of one rank's share."""
    section = getattr(recipe, stage)
    rows = max(FEWEST[stage], -(-section.global_batch // gpus))
    fields: dict[str, Any] = {"global_batch": rows}
    if stage == "refine":
        fields = {"global_batch": rows + rows % 2, "retain_batch": -(-section.retain_batch // gpus), "max_steps": 2}
    if section.micro_batch != "auto":
        fields["micro_batch"] = min(section.micro_batch, fields["global_batch"])
    return fields


def _changed(recipe: Recipe, stage: str, fields: dict[str, Any]) -> Recipe:
    values = recipe.model_dump()
    values[stage] |= fields
    return Recipe.model_validate(values)


def main(asked: Path, answer: Path) -> None:
    """Take the steps that a request names, in this process, and write what was measured."""
    from dcr_ds.engine import distributed as process

    request = Request(**json.loads(asked.read_text(encoding="utf-8")))
    process.set_environment()
    with process.joined() as ranks:
        taken = _take(request, ranks)
    answer.write_text(json.dumps(asdict(taken)), encoding="utf-8")


def _take(request: Request, ranks) -> Taken:
    import torch

    from dcr_ds.engine.machine import Machine
    from dcr_ds.engine.resolve import check_device, resolve
    from dcr_ds.models.checkpoint_files import model_config
    from dcr_ds.plan.trial import Rows, second_step

    stage, recipe, source = request.stage, Recipe.model_validate(request.recipe), Path(request.source)
    if request.follow:
        recipe = _changed(recipe, stage, _few_rows(getattr(recipe, stage), stage))
    config = model_config(source)
    resolved, _ = resolve(recipe, config, Machine.detect(ranks))
    check_device(resolved, config["model_type"], ranks.device)
    kind = "dpo" if stage == "align" and recipe.align.method == "dpo" else stage
    step = second_step(kind, resolved, source, Rows(request.tokens), ranks, request.follow)
    on_gpu = ranks.device.type == "cuda"
    memory = torch.cuda.get_device_properties(ranks.device).total_memory if on_gpu else _host_bytes()
    done = Request(stage, resolved.model_dump(mode="json"), request.source, request.tokens, request.follow)
    return Taken(done, step.seconds, step.tokens, step.peak, on_gpu, memory)


def _few_rows(section, stage: TrainingStage) -> dict[str, Any]:
    """Fields of a resolved stage that make two micro-batches of few rows each."""
    at_once = min(section.micro_batch, ROWS_FOLLOWED)
    return {"micro_batch": at_once, "global_batch": max(FEWEST[stage], min(section.global_batch, 2 * at_once))}


def _host_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
