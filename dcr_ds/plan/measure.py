"""--measure: two steps of each stage on this machine, and what a plan learns from them: the rate that is reached, and
how much of the memory that was rehearsed is really taken.

The steps are those of one rank's share, on random tokens, in a process of its own:

    python -m dcr_ds.plan.measure REQUEST ANSWER        both are files of JSON
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcr_ds.errors import UserError
from dcr_ds.recipe import Recipe

TIMEOUT_SECONDS = 3600
FEWEST = {"refine": 4, "align": 1}  # rows of a step: two of each class
ROWS_FOLLOWED = 4  # at once where the memory is followed: enough to compare, and little where there is little of it


@dataclass(frozen=True)
class Calibration:
    """What was measured of a stage.

    Attributes:
        flops: operations a second that were reached, recomputed activations counted as work.
        memory_factor: how many times the rehearsed memory (activations, loss, temporaries) was taken.
        told: the same in words.
        on_gpu, memory_gib: where the steps were taken: a GPU and its memory, or a CPU and that of all its processes.
    """

    flops: float
    memory_factor: float
    told: str
    on_gpu: bool
    memory_gib: float


def calibrate(recipe: Recipe, source: Path, lengths: dict[str, int], gpus: int) -> dict[str, Calibration]:
    """Measure the training stages of a recipe.

    Args:
        source: the folder of the model.
        lengths: mean tokens of a row, by stage; the memory is that of rows of max_length.
        gpus: over so many the recipe's batch is shared; one share is run.

    Raises:
        UserError: the steps failed; says how.
    """
    request = {"recipe": recipe.model_dump(mode="json"), "source": str(source), "lengths": lengths, "gpus": gpus}
    with tempfile.TemporaryDirectory(prefix="dcr-ds-plan") as folder:
        files = [Path(folder) / name for name in ("request.json", "answer.json")]
        files[0].write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "dcr_ds.plan.measure", *map(str, files)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"plan: --measure: the steps took more than {TIMEOUT_SECONDS} s; plan a smaller global_batch"
            ) from None
        if done.returncode:
            raise UserError(f"plan: --measure: the steps could not be run: {_reason(done)}")
        return {stage: Calibration(**one) for stage, one in json.loads(files[1].read_text(encoding="utf-8")).items()}


def _reason(done: subprocess.CompletedProcess) -> str:
    """The error of a process, without the trace before it."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"the process was ended by {name}{', maybe for want of memory' if name == 'SIGKILL' else ''}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or ["nothing was said"])[-1][-400:]


def main(request: Path, answer: Path) -> None:
    """Take the steps that a request names, in this process, and write what was measured."""
    from dcr_ds.engine import ranks as process

    asked = json.loads(request.read_text(encoding="utf-8"))
    recipe = Recipe.model_validate(asked["recipe"])
    process.set_environment()
    with process.joined() as ranks:
        found = {
            stage: asdict(_measure(stage, recipe, Path(asked["source"]), asked["lengths"][stage], asked["gpus"], ranks))
            for stage in ("refine", "align")
            if stage in recipe.stages
        }
    answer.write_text(json.dumps(found), encoding="utf-8")


def _measure(stage: str, recipe: Recipe, source: Path, tokens: int, gpus: int, ranks) -> Calibration:
    import torch

    from dcr_ds.plan.choose import planned

    on_gpu = ranks.device.type == "cuda"
    recipe = _changed(recipe, stage, _share(recipe, stage, gpus))
    tokens = min(tokens, getattr(recipe, stage).max_length)
    step, resolved = _second_step(stage, recipe, source, tokens, ranks, follow=False)
    operations = _operations(stage, planned(resolved, source, on_gpu), source, tokens, on_gpu) * step.tokens
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()

    recipe = _changed(resolved, stage, _fewer_rows(resolved, stage))
    longest = getattr(recipe, stage).max_length
    followed, resolved = _second_step(stage, recipe, source, longest, ranks, follow=True)
    held = _planned_memory(stage, planned(resolved, source, on_gpu), source, on_gpu)
    factor = 1.0
    if held.peak_phase == "backward pass":
        factor = max(0.1, 1 + (followed.peak - held.peak) / held.rehearsed)
    memory = torch.cuda.get_device_properties(ranks.device).total_memory if on_gpu else host_bytes()
    flops = operations / step.seconds
    told = (
        f"Measured, {stage}: {step.tokens} tokens in {step.seconds:.2f} s, {flops / 1e12:.3g} TFLOP/s; peak memory "
        f"of rows of {longest} tokens {followed.peak / 2**30:.2f} GiB, planned {held.peak / 2**30:.2f}: "
        f"activations and temporaries are planned {factor:.2f} times as large"
    )
    return Calibration(flops, factor, told, on_gpu, memory / 2**30)


def _second_step(stage: str, recipe: Recipe, source: Path, tokens: int, ranks, follow: bool):
    """The second step of a stage on rows of so many tokens, and the recipe as it was resolved for it."""
    from dcr_ds.engine.resolve import resolve
    from dcr_ds.models.source import model_config
    from dcr_ds.plan.trial import Rows, second_step

    resolved, settings = resolve(recipe, model_config(source), ranks.device, 1)
    return second_step(_kind(stage, recipe), resolved, settings, source, Rows(tokens), ranks, follow), resolved


def _kind(stage: str, recipe: Recipe) -> str:
    return "dpo" if stage == "align" and recipe.align.method == "dpo" else stage


def host_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _share(recipe: Recipe, stage: str, gpus: int) -> dict[str, Any]:
    section = getattr(recipe, stage)
    rows = max(FEWEST[stage], -(-section.global_batch // gpus))
    if stage == "align":
        return {"global_batch": rows}
    return {"global_batch": rows + rows % 2, "retain_batch": max(1, section.retain_batch // gpus), "max_steps": 2}


def _changed(recipe: Recipe, stage: str, fields: dict[str, Any]) -> Recipe:
    values = recipe.model_dump()
    values[stage] |= fields
    return Recipe.model_validate(values)


def _fewer_rows(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Two micro-batches of few rows each."""
    section = getattr(recipe, stage)
    at_once = min(section.micro_batch, ROWS_FOLLOWED)
    return {"micro_batch": at_once, "global_batch": max(FEWEST[stage], min(section.global_batch, 2 * at_once))}


def _operations(stage: str, recipe: Recipe, source: Path, row: int, on_gpu: bool) -> float:
    """Floating-point operations of a step for each token, in rows of `row`."""
    from dcr_ds.plan.memory import share_of
    from dcr_ds.plan.rehearsal import Work, rehearse

    one = rehearse(recipe, source, Work(_kind(stage, recipe), 1, row), device="cuda" if on_gpu else "cpu")
    embeds_first = stage == "refine" and share_of(recipe, "refine", ranks=1).micro_batches > 1
    return (one.flops + embeds_first * one.forward_flops) / row


def _planned_memory(stage: str, recipe: Recipe, source: Path, on_gpu: bool):
    """What the plan says of the step that was followed."""
    from dcr_ds.plan.memory import memory, share_of, tensors_of
    from dcr_ds.plan.states import Zero

    kind, zero = _kind(stage, recipe), Zero.of(recipe.deepspeed)
    tensors = tensors_of(recipe, source, kind)
    return memory(recipe, source, kind, zero, 1, share_of(recipe, stage, ranks=1), tensors, on_gpu)


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
