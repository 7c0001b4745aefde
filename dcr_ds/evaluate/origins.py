"""The prompts that an existing model was made from: by the training of its run, by a baseline, and by its sources."""

from contextlib import suppress
from pathlib import Path

from dcr_ds.data.kept import read_kept
from dcr_ds.data.load import AnySet, Earlier, examine_data, needed_sets
from dcr_ds.errors import UserError
from dcr_ds.files import expand_user, read_object
from dcr_ds.models.checkpoint_files import BASELINE_PROMPTS, BASELINE_RECORD, base_of_adapter
from dcr_ds.recipe import load_recipe
from dcr_ds.recipe.layout import STAGE_OF_MODEL, TRAINING_STAGES, RunFolder, enclosing_run

UNCHECKED = "leakage from it is not checked"


def made_from(source: str) -> Earlier:
    """The prompts that a model was made from, as far as its folder says.

    A baseline keeps its prompts and names its source, an adapter names its base, and a run has the recipe of its data.
    Hub ids, endpoints and folders from elsewhere say nothing. What cannot be read is a note: a model can be used
    without the data that it was trained on.

    Args:
        source: a folder, hub id, …, as in `model.source`.
    """
    earlier = Earlier()
    seen: set[Path] = set()
    left = [source]
    while left:
        folder = expand_user(left.pop())
        if not folder.is_dir() or folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        run = _run_of(folder)
        for kept in (_of_baseline(folder), _of_run(run) if run else Earlier()):
            earlier.sets.update(kept.sets)
            earlier.notes.extend(kept.notes)
        left += [name for name in _sources(folder, run) if isinstance(name, str)]
    return earlier


def _of_baseline(folder: Path) -> Earlier:
    file = folder / BASELINE_PROMPTS
    if not (folder / BASELINE_RECORD).is_file():
        return Earlier()
    if not file.is_file():
        return Earlier(notes=[f"{file}: is missing, so {UNCHECKED}; make the baseline again"])
    try:
        return Earlier({f"{folder} ({name})": prompts for name, prompts in read_kept(file).items()})
    except UserError as error:
        return Earlier(notes=[f"{error}; {UNCHECKED}"])


def _of_run(run: RunFolder) -> Earlier:
    """The training sets of a run, read again; those that differ from what the run read are used all the same."""
    try:
        recipe = load_recipe(str(run.recipe), [])
    except UserError as error:
        return Earlier(notes=[f"{error}; {UNCHECKED}"])
    trained = recipe.model_copy(update={"stages": [stage for stage in TRAINING_STAGES if stage in recipe.stages]})
    data, errors = examine_data(trained, needed_sets(trained))
    recorded = read_object(run.environment).get("data") or {}
    sets = data.training_sets()
    changed = [name for name, rows in sets.items() if rows.sha256 != recorded.get(name, {}).get("sha256", rows.sha256)]
    notes = [f"{run.folder}: {error}; {UNCHECKED}" for error in errors]
    notes += [f"{run.folder}: {name} has changed since the run; its present rows are checked" for name in changed]
    named: dict[str, AnySet] = {f"{run.folder} ({name})": rows for name, rows in sets.items()}
    return Earlier(named, notes)


def _run_of(folder: Path) -> RunFolder | None:
    """The run that trained the model or adapter in a folder."""
    run = enclosing_run(folder)
    if run is None:
        return None
    inside = folder.absolute().relative_to(run.folder.absolute()).parts
    return run if inside and inside[0] in STAGE_OF_MODEL.values() else None


def _sources(folder: Path, run: RunFolder | None) -> list[object]:
    """What a model was made from, as its folder names it."""
    found = [read_object(folder / BASELINE_RECORD).get("source")]
    with suppress(UserError):  # a damaged file is reported where it is used
        found += [base_of_adapter(folder), load_recipe(str(run.recipe), []).model.source if run else None]
    return found
