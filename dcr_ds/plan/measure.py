"""--measure: run two steps of each stage on this machine, and calibrate the plan with their rate and memory.

The steps are those of one rank's share, on random tokens. Each pair of steps runs in a process of its own, because
DeepSpeed does not free all memory of an engine:

    python -m dcr_ds.plan.measure REQUEST ANSWER        both are JSON files
"""

import json
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
MIN_ROWS: dict[TrainingStage, int] = {"refine": 4, "align": 2}  # per step; stage 1: two of each class; KTO: two answers
ROWS_FOR_MEMORY = 4  # micro-batch size when memory is measured: enough to compare, and small on small machines


@dataclass(frozen=True)
class Request:
    """Two steps to run.

    Attributes:
        recipe: that of one rank's share, as JSON.
        source: the folder of the model.
        tokens: per row.
        memory: measure the memory, on few rows, instead of the time.
    """

    stage: TrainingStage
    recipe: dict[str, Any]
    source: str
    tokens: int
    memory: bool


@dataclass(frozen=True)
class Measurement:
    """The second of two steps.

    Attributes:
        request: the request, with the resolved recipe.
        seconds, tokens, peak: see `trial.StepFigures`.
        on_gpu, device_bytes: a GPU and its memory, or a CPU and the memory of the host.
    """

    request: Request
    seconds: float
    tokens: int
    peak: int
    on_gpu: bool
    device_bytes: int


@dataclass(frozen=True)
class Calibration:
    """Corrections of the plan of a stage.

    Attributes:
        flops: measured operations per second; recomputed activations count as work.
        memory_factor: ratio of measured to rehearsed memory (activations, loss, temporaries).
        summary: the same in words.
        on_gpu, memory_gib: a GPU and its memory, or a CPU and the memory of the host.
    """

    flops: float
    memory_factor: float
    summary: str
    on_gpu: bool
    memory_gib: float


def measure_steps(
    recipe: Recipe, source: Path, lengths: dict[str, int], gpus: int
) -> dict[str, tuple[Measurement, Measurement]]:
    """Run the steps of each training stage of a recipe, once for the time and once for the memory.

    Args:
        source: the folder of the model.
        lengths: mean tokens per row, by stage; memory is measured with rows of max_length.
        gpus: number of GPUs that share the batch; the share of one is run.

    Raises:
        UserError: the steps failed, with the reason.
    """
    measured: dict[str, tuple[Measurement, Measurement]] = {}
    for stage in (stage for stage in MIN_ROWS if stage in recipe.stages):
        share = _changed(recipe, stage, _share(recipe, stage, gpus))
        longest = getattr(recipe, stage).max_length
        rate = _run(Request(stage, share.model_dump(mode="json"), str(source), lengths[stage], memory=False))
        measured[stage] = rate, _run(Request(stage, rate.request.recipe, str(source), longest, memory=True))
    return measured


def calibrate(stage: str, rate: Measurement, memory: Measurement) -> Calibration:
    """Compare measured steps with the plan of the same steps."""
    from dcr_ds.plan.tables import prose

    operations = _planned(rate).time.compute  # seconds at one operation per second
    flops = operations / rate.seconds
    held = _planned(memory).memory
    summary = (
        f"Measured, {stage}: {rate.tokens} tokens in {rate.seconds:.2f} s, {flops / 1e12:.3g} TFLOP/s; peak memory of "
        f"rows of {memory.request.tokens} tokens {memory.peak / 2**30:.2f} GiB, planned {held.peak / 2**30:.2f}: "
    )
    factor = 1.0
    if held.peak_phase == "backward pass":
        factor = max(0.0, 1 + (memory.peak - held.peak) / held.rehearsed)
        summary += f"activations and temporaries are planned {factor:.2f} times as large"
    else:
        summary += "the peak is in the optimizer step, so activations are not calibrated"
    return Calibration(flops, factor, prose(summary), rate.on_gpu, rate.device_bytes / 2**30)


def _planned(measurement: Measurement):
    """The plan of a measured step."""
    from dcr_ds.engine.config import read_config
    from dcr_ds.plan.choose import Cluster, Lengths, Stage, planned
    from dcr_ds.plan.clock import Rates
    from dcr_ds.plan.states import Zero

    request, unit_rates = measurement.request, Rates(flops=1, node_link=1, network=1, mfu=1)
    recipe, source = Recipe.model_validate(request.recipe), Path(request.source)
    cluster = Cluster(1, 1, measurement.device_bytes / 2**30, unit_rates, on_gpu=measurement.on_gpu)
    lengths = Lengths(request.tokens, request.tokens)
    stage = Stage(planned(recipe, source, cluster), source, request.stage, cluster, lengths)
    return stage.at(Zero.of(read_config(recipe)), stage.section.micro_batch)


def _run(request: Request) -> Measurement:
    """Run the steps in a process of their own."""
    with tempfile.TemporaryDirectory(prefix="dcr-ds-plan") as folder:
        request_file, answer = (Path(folder) / name for name in ("request.json", "answer.json"))
        request_file.write_text(json.dumps(asdict(request)), encoding="utf-8")
        command = [sys.executable, "-m", "dcr_ds.plan.measure", str(request_file), str(answer)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"dcr-ds plan: --measure: two steps of {request.stage} took more than {TIMEOUT_SECONDS} s; plan a "
                f"smaller {request.stage}.global_batch"
            ) from None
        if done.returncode:
            raise UserError(f"dcr-ds plan: --measure: the steps of {request.stage} failed: {_reason(done)}")
        figures = json.loads(answer.read_text(encoding="utf-8"))
    return Measurement(**figures | {"request": Request(**figures["request"])})


def _reason(done: subprocess.CompletedProcess) -> str:
    """The error of a process, without its traceback."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"the process was killed by {name}{', possibly out of memory' if name == 'SIGKILL' else ''}"
    lines = [line.removeprefix("[rank0]: ") for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["it printed no error"])[-1].removeprefix("error: ")[-400:]


def _share(recipe: Recipe, stage: TrainingStage, gpus: int) -> dict[str, Any]:
    """Fields of a stage for a run of one rank's share on one rank."""
    section = getattr(recipe, stage)
    rows = max(MIN_ROWS[stage], -(-section.global_batch // gpus))
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


def main(request_file: Path, answer: Path) -> None:
    """Run the steps of a request in this process, and write the measurement."""
    from dcr_ds.engine import distributed as process
    from dcr_ds.engine.launcher import set_environment

    request = Request(**json.loads(request_file.read_text(encoding="utf-8")))
    set_environment()
    with process.joined() as ranks:
        measurement = _run_here(request, ranks)
    answer.write_text(json.dumps(asdict(measurement)), encoding="utf-8")


def _run_here(request: Request, ranks) -> Measurement:
    from dcr_ds.engine.machine import Machine, device_bytes
    from dcr_ds.engine.resolve import check_device, resolve
    from dcr_ds.models.checkpoint_files import model_config
    from dcr_ds.plan.trial import Rows, second_step

    stage, recipe, source = request.stage, Recipe.model_validate(request.recipe), Path(request.source)
    if request.memory:
        recipe = _changed(recipe, stage, _few_rows(getattr(recipe, stage), stage))
    config = model_config(source)
    resolved, _ = resolve(recipe, config, Machine.detect(ranks))
    check_device(resolved, config, ranks.device)
    step = second_step(stage, resolved, source, Rows(request.tokens), ranks, request.memory)
    done = Request(stage, resolved.model_dump(mode="json"), request.source, request.tokens, request.memory)
    return Measurement(
        done, step.seconds, step.tokens, step.peak, ranks.device.type == "cuda", device_bytes(ranks.device)
    )


def _few_rows(section, stage: TrainingStage) -> dict[str, Any]:
    """Fields of a resolved stage for two micro-batches of few rows each."""
    micro_batch = min(section.micro_batch, ROWS_FOR_MEMORY)
    return {
        "micro_batch": micro_batch,
        "global_batch": max(MIN_ROWS[stage], min(section.global_batch, 2 * micro_batch)),
    }


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
