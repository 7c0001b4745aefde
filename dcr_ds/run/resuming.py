"""What exists of the stages of a run: which are done, and whether the others can be resumed. Rank 0."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcr_ds.errors import UserError
from dcr_ds.files import read_json
from dcr_ds.models.checkpoint_files import TOKENIZER_FILES, check_checkpoint, copied_files
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import RunFolder, StageFolder, section_of
from dcr_ds.run.folder import has_control
from dcr_ds.run.identity import check_identity

if TYPE_CHECKING:
    from dcr_ds.run.tokens import RunTokens


def check_resumed(tokens: "RunTokens", redone: Sequence[str], world_size: int) -> list[str]:
    """Check each stage that has results, and free space; writes nothing and returns notes to print. Rank 0.

    Args:
        redone: stages whose results a --redo is still to remove.

    Raises:
        UserError: a stage began with another model or other data, or its model is incomplete; stage 1 is to be aligned
            and is not done; or the disk has too little space.
    """
    from dcr_ds.run.space import check_space

    notes = []
    recipe, source = tokens.recipe, tokens.source
    run = RunFolder(recipe.folder)
    refined = run.stage("refine")
    starts = {"refine": source, "align": refined.model if refined.has_results else source, "control": source}
    for stage, start in starts.items():
        is_asked = stage in recipe.stages or (stage == "control" and has_control(recipe))
        if not is_asked or stage in redone or not run.stage(stage).has_results:
            continue
        check_done(run.stage(stage), stage, source)
        if start.is_dir():
            notes += check_stage(tokens, stage, start, world_size)[1]
    if "align" in recipe.stages and "refine" not in recipe.stages and refined.has_results:
        check_refined(refined)
    pending = pending_stages(recipe)
    pending += [stage for stage in redone if stage in starts and stage not in pending]
    return notes + check_space(tokens, [stage for stage in starts if stage in pending])


def check_refined(folder: StageFolder) -> None:
    """Raise UserError if stage 1 is not done."""
    if not folder.is_done:
        raise UserError(
            f"{folder.folder}: refine has begun and is not done; finish it first (--stages [refine,align]), or "
            "give this run another --name"
        )


def check_stage(tokens: "RunTokens", stage: str, start: Path, world_size: int) -> tuple[dict[str, Any], list[str]]:
    """Compare what a stage depends on with its record; see `check_identity`."""
    is_done = RunFolder(tokens.recipe.folder).stage(stage).is_done
    token_hash = None if is_done else tokens.hash_of(stage)
    return check_identity(tokens.recipe, stage, start, tokens.data, token_hash, world_size)


def pending_stages(recipe: Recipe) -> list[str]:
    """The training stages of a run that are not done. Rank 0."""
    stages = [*recipe.training_stages, *(["control"] if has_control(recipe) else [])]
    return [stage for stage in stages if not RunFolder(recipe.folder).stage(stage).is_done]


def end_stage(folder: StageFolder, stage: str, source: Path) -> bool:
    """Return whether a stage is done, and complete what an interrupted end of it left undone. Rank 0.

    Args:
        source: the source model of the run.

    Raises:
        UserError: see `check_done`.
    """
    if not check_done(folder, stage, source):
        folder.summary.unlink(missing_ok=True)  # if damaged: the stage resumes from its last checkpoint and ends again
        return False
    if folder.checkpoints.exists():
        from dcr_ds.engine.checkpoint.checkpoints import remove_checkpoints

        remove_checkpoints(folder.checkpoints)  # left where a run ended just after the summary was written
    return True


def check_done(folder: StageFolder, stage: str, source: Path) -> bool:
    """Return whether a stage is done; nothing is changed.

    Raises:
        UserError: it is done, and its summary or its model is missing or damaged.
    """
    if not folder.is_done:
        return False
    summary = read_json(folder.summary)
    if not isinstance(summary, dict) or "steps" not in summary:
        if any(folder.checkpoints.glob("step-*")):
            return False
        raise UserError(f"{folder.summary}: damaged; restore it, or do the stage again with --redo {section_of(stage)}")
    check_stage_model(folder, stage, source)
    return True


def check_stage_model(folder: StageFolder, stage: str, source: Path) -> None:
    """Raise UserError unless the model of a finished stage is complete, with the tokenizer files of the source."""
    try:
        check_checkpoint(folder.model)
        for file in copied_files(source, TOKENIZER_FILES):
            if not (folder.model / file.name).is_file():
                raise UserError(f"{folder.model}: {file.name} of the tokenizer is missing")
    except UserError as error:
        raise UserError(
            f"{folder.model}: {stage} is done, and its model is missing or incomplete ({error}); restore it, or do the "
            f"stage again with --redo {section_of(stage)}"
        ) from None
