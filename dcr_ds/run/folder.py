"""The run folder: created or reopened, checked against the recipe, described, and cleared for a redo."""

import os
import shutil
from pathlib import Path
from typing import Any

from dcr_ds.data.load import SETS, sets_of_stage
from dcr_ds.errors import UserError
from dcr_ds.files import hash_of, read_json, write_atomically, write_json
from dcr_ds.recipe import STAGES, TRAINING_STAGES, Recipe, dump_recipe, public_values, read_yaml
from dcr_ds.recipe.layout import STAGE_OF_MODEL, RunFolder, section_of
from dcr_ds.run.environment import record_attempt

# fields that change no weight, so they may change when a run is resumed
FREE = (
    "name",
    "output",
    "stages",
    "control",
    "allow_leakage",
    "deepspeed",
    "log_every",
    "tensorboard",
    "track",
    "profile_steps",
    "checkpoint",
    "watchdog",
)
# fields of a stage that may change, too: how batches are split, and what happens after a refinement that failed
FREE_IN_STAGES = (".micro_batch", ".packed_length", ".on_failure")
# `auto` in the recipe of one machine may become something else on another, with results that differ in rounding
RESOLVED_PER_MACHINE = (".loss_backend", ".ranks_per_copy")

# fields whose `auto` means, on resume, what it was resolved to before
KEPT = (
    ("model", "dtype"),
    ("model", "attention"),
    ("model", "kernels"),
    ("refine", "layer"),
    ("refine", "learning_rate"),
    ("align", "router_aux_loss_coef"),
)


def prepare_folder(recipe: Recipe, redo: str | None) -> Recipe:
    """Create or check the run folder; return the recipe with each `auto` as an earlier attempt resolved it.

    Nothing that exists is changed, so this can be called before a run is opened, and again under its lock.

    Raises:
        UserError: see `check_folder`.
    """
    folder = recipe.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: the run folder cannot be created ({error.strerror}); set --output elsewhere"
        ) from None
    return check_folder(recipe, redo)


def check_folder(recipe: Recipe, redo: str | None) -> Recipe:
    """Check the run folder, or where it is to be created; return the recipe as `prepare_folder` does.

    Args:
        redo: a stage to do again, with the stages after it, or `all`; see `begin_redo`.

    Raises:
        UserError: the folder cannot be created or written to, or it holds the run of another recipe.
    """
    folder = recipe.folder
    nearest = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), folder)
    if not nearest.is_dir():
        raise UserError(
            f"{folder}: the run folder cannot be created ({nearest} is not a folder); set --output elsewhere"
        )
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{folder}: the run folder cannot be written to; set --output elsewhere")
    run = RunFolder(folder)
    if redo is None:
        _redo_begun(run)
    redone = stages_to_redo(recipe, redo)
    trained = [stage for stage in TRAINING_STAGES if stage not in redone and run.stage(stage).has_results]
    keeps_control = "control" not in redone and run.stage("control").has_results  # trained as align says
    kept = {*trained, *(["align"] if keeps_control else [])}
    saved = _saved_recipe(run) if kept else None
    # the identity of each stage that runs now is compared by content later; of the others only the recipe is known
    by_content = set(trained) <= {*recipe.stages} and (not keeps_control or has_control(recipe))
    if saved and (different := _what_differs(saved, recipe, kept, by_content)):
        raise UserError(
            f"{folder}: holds another recipe's run:\n" + "\n".join(different) + "\nGive this one another --name or "
            "--output, or do the stages again with --redo refine, --redo align or --redo all"
        )
    if "refine" in recipe.stages and trained == ["align"]:
        raise UserError(
            f"{run.stage('align').folder}: was aligned without refine; give this run another --name or --output, or "
            "do stage 2 again with --redo align"
        )
    return _keep_resolved(recipe, saved) if saved else recipe


def check_separate(recipe: Recipe, source: Path) -> None:
    """Raise UserError if a run would write into the folder of its source model, or over that model."""
    folder, source = recipe.folder.resolve(), source.resolve()
    if folder.is_relative_to(source):
        raise UserError(
            f"{recipe.folder}: the run folder would be inside the model's folder {source}; set --output elsewhere"
        )
    if any(source.is_relative_to(RunFolder(folder).stage(stage).folder) for stage in STAGE_OF_MODEL.values()):
        raise UserError(
            f"{recipe.folder}: model.source is a model of this run, which the run would write over; give it another "
            "--name or --output"
        )


def begin_redo(recipe: Recipe, redo: str | None) -> str | None:
    """Remove the outputs of the stages to do again, once: a redo that was begun is resumed by the same command. Rank 0.

    The run folder records the redo until `end_redo`. With another recipe it is another redo and begins again.

    Returns:
        What was decided, to be printed; None without a redo.

    Raises:
        UserError: an output cannot be removed.
    """
    run = RunFolder(recipe.folder)
    if redo is None:
        record = _redo_begun(run)
        if record and record.get("cleared") is False:  # interrupted while it removed
            for stage in record["stages"]:
                _clear(run.stage(stage).folder)
            write_json(run.redo, record | {"cleared": True})
            return f"removed what an interrupted --redo had left of {', '.join(record['stages'])}"
        return None
    if not stages_to_redo(recipe, redo):
        return f"--redo {redo} has begun before and is continued; to begin it again, remove {run.redo}"
    # written before anything is removed: a redo that is interrupted while it removes must not resume what is left
    write_json(run.redo, _redo_record(recipe, redo) | {"cleared": False})
    for stage in _redo_stages(redo):
        _clear(run.stage(stage).folder)
    write_json(run.redo, _redo_record(recipe, redo) | {"cleared": True})
    return f"--redo {redo}: removed the earlier results of {', '.join(_redo_stages(redo))}"


def end_redo(recipe: Recipe) -> None:
    """Record that all stages are done: the next --redo begins again. Rank 0."""
    RunFolder(recipe.folder).redo.unlink(missing_ok=True)


def save_run(recipe: Recipe, environment: dict[str, Any]) -> None:
    """Write recipe.yaml, from which the same run can be started again, and environment.json. Rank 0.

    environment.json describes the latest attempt, and lists all attempts in `attempts`.
    """
    run = RunFolder(recipe.folder)
    saved = _saved_recipe(run) if run.has_results else None
    found: Any = read_json(run.environment) if saved else None
    before = found if isinstance(found, dict) else {}
    if saved:
        if saved["stages"] == list(recipe.stages) == ["evaluate"] and before.get("model") != environment.get("model"):
            before = {"attempts": before.get("attempts")}  # notes and leakage of another model are not of this one
        # a run that is resumed with fewer stages (only evaluate, for example) still has its earlier stages
        stages = [stage for stage in STAGES if stage in (*recipe.stages, *saved["stages"])]
        recipe = recipe.model_copy(update={"stages": stages})
    write_json(run.environment, record_attempt(environment, before))
    write_atomically(run.recipe, dump_recipe(recipe))


def has_control(recipe: Recipe) -> bool:
    """Return whether a run trains a control: it aligns a model that was refined."""
    refines = "refine" in recipe.stages or RunFolder(recipe.folder).stage("refine").is_done
    return recipe.control == "stl" and "align" in recipe.stages and refines


def settings_of(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Return the fields of a resolved recipe that the result of a stage depends on."""
    section = section_of(stage)
    others = {*FREE, *STAGES} - {section}
    values = {name: value for name, value in public_values(recipe).items() if name not in others}
    free = (*FREE_IN_STAGES, *RESOLVED_PER_MACHINE)
    values[section] = {name: value for name, value in values[section].items() if f".{name}" not in free}
    unread = {*SETS} - {*sets_of_stage(recipe, section)}
    values["data"] = {name: _without_source(value) for name, value in values["data"].items() if name not in unread}
    values["model"] = _without_source(values["model"])
    return values


def _without_source(value: Any) -> Any:
    """Drop the path of a model or data set, which is compared by its content."""
    return {name: field for name, field in value.items() if name != "source"} if isinstance(value, dict) else value


def _redo_stages(redo: str | None) -> tuple[str, ...]:
    """The stages whose results a redo removes."""
    if redo is None:
        return ()
    stages = STAGES if redo == "all" else STAGES[[str(stage) for stage in STAGES].index(redo) :]
    # the control depends on align alone: it stays when only refine is done again
    return (*stages, "control") if redo in ("align", "all") else stages


def stages_to_redo(recipe: Recipe, redo: str | None) -> tuple[str, ...]:
    """The stages whose results the redo still has to remove; none where it did so before it was interrupted."""
    record: Any = read_json(RunFolder(recipe.folder).redo)
    has_begun = redo is not None and record == _redo_record(recipe, redo) | {"cleared": True}
    return () if has_begun else _redo_stages(redo)


def _redo_begun(run: RunFolder) -> dict[str, Any] | None:
    """The record of a redo that has begun, if there is one.

    Raises:
        UserError: it is damaged; without it a stage that is half removed would be resumed.
    """
    if not run.redo.exists():
        return None
    record: Any = read_json(run.redo)
    stages = record.get("stages") if isinstance(record, dict) else None
    if not isinstance(stages, list) or any(stage not in (*STAGES, "control") for stage in stages):
        raise UserError(f"{run.redo}: damaged, so what a --redo had begun to remove is unknown; repeat that --redo")
    return record


def _redo_record(recipe: Recipe, redo: str) -> dict[str, Any]:
    values = {name: value for name, value in public_values(recipe).items() if name not in FREE}
    return {"stages": list(_redo_stages(redo)), "recipe": hash_of(values)}


def _clear(folder: Path) -> None:
    """Remove a folder; of a symbolic link to a folder, everything in that folder.

    Raises:
        UserError: something is left.
    """
    try:
        if folder.is_symlink() and folder.is_dir():
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        elif folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be removed for --redo ({error.strerror}: {error.filename or folder}); remove it "
            "yourself, or give this run another --name"
        ) from None


def _what_differs(saved: dict[str, Any], recipe: Recipe, trained: set[str], by_content: bool) -> list[str]:
    """Describe each field that must not differ and does; what only stages without results read may differ.

    Args:
        by_content: whether models and data sets may be in another place, since their content is compared later.
    """
    free = {*FREE, *STAGES} - trained
    unread = {*SETS}.difference(*(sets_of_stage(recipe, stage) for stage in trained))
    return [
        f"  {name}: {old} there, {new} now"
        for name, old, new in differences(saved, public_values(recipe))
        if name.partition(".")[0] not in free
        and name.removeprefix("data.").partition(".")[0] not in unread
        and not (by_content and name.endswith(".source"))
        and not name.endswith(FREE_IN_STAGES)
        and not _is_kept(name, new)
    ]


def _saved_recipe(run: RunFolder) -> dict[str, Any] | None:
    path = run.recipe
    if not path.is_file():
        return None
    try:
        values, _ = read_yaml(path.read_text(encoding="utf-8"), str(path), Recipe)
        if not values:  # a recipe of defaults is not empty either: all fields are written
            raise ValueError("it is empty")
        return Recipe.model_validate(values).model_dump(mode="json")
    except (ValueError, UserError):
        raise UserError(
            f"{path}: not a recipe that this version can read; restore it, give this run another --name, or remove the "
            "folder"
        ) from None


def differences(saved: Any, requested: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return name, saved and requested value of the fields that both have, where they differ."""
    if isinstance(saved, dict) and isinstance(requested, dict):
        names = [name for name in requested if name in saved]
        return [row for name in names for row in differences(saved[name], requested[name], f"{prefix}{name}.")]
    return [] if requested == saved else [(prefix[:-1], saved, requested)]


def _is_kept(name: str, requested: Any) -> bool:
    """Return whether an `auto` that is asked for means what it was resolved to before, or may differ per machine."""
    section, _, field = name.partition(".")
    return requested == "auto" and ((section, field) in KEPT or name.endswith(RESOLVED_PER_MACHINE))


def _keep_resolved(recipe: Recipe, saved: dict[str, Any]) -> Recipe:
    """Replace each `auto` by its resolved value, except how batches are split, which depends on ranks and device."""
    values = recipe.model_dump()
    for section, name in KEPT:
        if values[section][name] == "auto":
            values[section][name] = saved[section][name]
    return Recipe.model_validate(values)
