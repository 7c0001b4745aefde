"""Free space for what the training stages of a run will write, checked before the first step."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_ds.errors import UserError
from dcr_ds.files import existing_part, free_bytes
from dcr_ds.models.checkpoint_files import stored_dtypes, weight_files
from dcr_ds.models.splice import unfinished
from dcr_ds.plan.memory import tensors_of
from dcr_ds.plan.states import MASTER, saved_bytes
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import RunFolder, StageFolder, section_of
from dcr_ds.run.tokens import RunTokens


@dataclass(frozen=True)
class StageFiles:
    """Bytes that a stage writes.

    Attributes:
        at_once: checkpoints that exist at most, while one is written and the oldest is not yet removed.
        kept: checkpoints that exist while the model is written.
        model: bytes of the model, and of the adapter if there is one.
    """

    folder: StageFolder
    checkpoint: int
    at_once: int
    kept: int
    model: int


def check_space(tokens: RunTokens, pending: Sequence[str]) -> list[str]:
    """Check that the disk has room for the checkpoints and models of the stages that are not done. Rank 0.

    Returns:
        Notes to print, where free space is unknown.

    Raises:
        UserError: a file system has too little.
    """
    recipe, stages = tokens.recipe, _files(tokens, pending)
    notes = []
    for folder, needed in peaks(stages):
        free = free_bytes(folder)
        if free is None:
            notes.append(
                f"WARNING: {folder}: this file system does not report its free space; {_described(needed, stages)}"
            )
        elif free < needed:
            raise UserError(
                f"{folder}: {_described(needed, stages)}, and the file system has {_gigabytes(free)} free. Lower "
                f"checkpoint.keep (now {recipe.checkpoint.keep}), set --output to another file system, or free some "
                "space"
            )
    return notes


def describe_space(tokens: RunTokens, stages: Sequence[str]) -> list[str]:
    """Lines of a dry run: the bytes that stages will write, per file system."""
    files = _files(tokens, stages)
    return [f"disk: {folder}: {_described(needed, files)}" for folder, needed in peaks(files)]


def _files(tokens: RunTokens, stages: Sequence[str]) -> list[StageFiles]:
    refine_steps = tokens.recipe.refine.max_steps
    steps = {stage: refine_steps if stage == "refine" else tokens.align_steps() for stage in stages}
    return [files_of_stage(tokens.recipe, tokens.source, stage, number) for stage, number in steps.items()]


def files_of_stage(recipe: Recipe, source: Path, stage: str, steps: int) -> StageFiles:
    """What a stage writes, by the bytes of the plan.

    Args:
        recipe: resolved.
        stage: refine, align or control.
    """
    name = section_of(stage)
    section: Any = getattr(recipe, name)
    trained = [tensor for tensor in tensors_of(recipe, source, name) if tensor.trains]
    elements = sum(tensor.elements for tensor in trained)
    width = int(trained[0].width)
    assert isinstance(recipe.deepspeed, dict)  # resolved
    zero_stage = (recipe.deepspeed.get("zero_optimization") or {}).get("stage", 0)
    checkpoint = saved_bytes(elements, width, zero_stage, section.optimizer)
    if stage == "refine":  # the best weights, next to the current ones
        checkpoint += elements * (MASTER if section.adapter != "none" or stored_dtypes(source) != {"BF16"} else width)
    saves = max(1, -(-steps // recipe.checkpoint.every_steps))
    model = sum(file.stat().st_size for file in weight_files(source))
    return StageFiles(
        RunFolder(recipe.folder).stage(stage),
        int(checkpoint),
        min(saves, recipe.checkpoint.keep + 1),
        min(saves, recipe.checkpoint.keep),
        model + (MASTER * elements if section.adapter != "none" else 0),
    )


def peaks(stages: Sequence[StageFiles]) -> list[tuple[Path, int]]:
    """Per file system a folder on it, and the bytes that stages write to it at most, without those already there."""
    folders: dict[int, Path] = {}
    most: dict[int, int] = defaultdict(int)
    models: dict[int, int] = defaultdict(int)  # of earlier stages
    for stage in stages:
        checkpoints, exports = existing_part(stage.folder.checkpoints), existing_part(stage.folder.model)
        saved, exported = os.stat(checkpoints).st_dev, os.stat(exports).st_dev
        folders |= {exported: exports, saved: checkpoints}
        there = _bytes_in(stage.folder.checkpoints)
        most[saved] = max(most[saved], models[saved] + stage.at_once * stage.checkpoint - there)
        models[exported] += stage.model - _bytes_in(unfinished(stage.folder.model))
        kept = stage.kept * stage.checkpoint - there if saved == exported else 0
        most[exported] = max(most[exported], models[exported] + max(0, kept))
    return [(folders[device], needed) for device, needed in most.items()]


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _described(needed: int, stages: Sequence[StageFiles]) -> str:
    """Where the bytes come from: the stage with the largest checkpoints."""
    largest = max(stages, key=lambda stage: stage.at_once * stage.checkpoint)
    checkpoints = "1 checkpoint" if largest.at_once == 1 else f"{largest.at_once} checkpoints"
    return (
        f"the run needs {_gigabytes(needed)} there at once ({checkpoints} of "
        f"{_gigabytes(largest.checkpoint)} in {largest.folder.folder.name}, models of {_gigabytes(largest.model)})"
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
