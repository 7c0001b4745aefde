"""The prompts that an existing model was made from: by the training of its run, by a baseline, and by its sources."""

from contextlib import suppress
from pathlib import Path

from dcr_ds.data.kept import read_kept
from dcr_ds.data.load import AnySet, Earlier, examine_data, needed_sets
from dcr_ds.errors import UserError
from dcr_ds.files import expand_user, read_object
from dcr_ds.models.checkpoint_files import BASELINE_PROMPTS, BASELINE_RECORD, EXPORT_RECORD, base_of_adapter
from dcr_ds.recipe import load_recipe
from dcr_ds.recipe.layout import CONTROL, STAGE_OF_MODEL, RunFolder, enclosing_run

UNCHECKED = "leakage from it is not checked"
OF_ONE_STAGE = {"refine": ["refine"], CONTROL: ["align"]}  # an aligned model is made by all training stages


def made_from(source: str) -> Earlier:
    """The prompts that a model was made from, as far as its folder says.

    A baseline keeps its prompts and names its source, an adapter names its base, an export the run that it is of, and a
    run has the recipe of its data.
    Hub ids, endpoints and folders from elsewhere say nothing. What cannot be read is a note: a model can be used
    without the data that it was trained on.

    Args:
        source: a folder, hub id, …, as in `model.source`.
    """
    earlier = Earlier()
    seen: set[Path] = set()
    left = [source]
    while left:
        path = expand_user(left.pop())
        folder = path.parent if path.suffix == ".gguf" else path
        if not folder.is_dir() or folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        of_run, source_of_run = _of_run(folder)
        for kept in (_of_baseline(folder), _of_export(folder), of_run):
            earlier.sets.update(kept.sets)
            earlier.notes.extend(kept.notes)
        left += [name for name in (*_sources(folder), source_of_run) if isinstance(name, str)]
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


def _of_export(folder: Path) -> Earlier:
    """A note if what an export was made of is no longer there."""
    source = read_object(folder / EXPORT_RECORD).get("source")
    is_gone = isinstance(source, str) and not Path(source).is_dir()
    return Earlier(notes=[f"{folder}: was exported from {source}, which is missing; {UNCHECKED}"] if is_gone else [])


def _of_run(folder: Path) -> tuple[Earlier, str | None]:
    """The training sets that a run made the model or adapter in a folder from, and the source of its model.

    The sets are read again; those that differ from what the run read are used all the same.
    """
    run = enclosing_run(folder)
    inside = folder.absolute().relative_to(run.folder.absolute()).parts if run else ()
    if run is None or not inside or inside[0] not in STAGE_OF_MODEL.values():
        return Earlier(), None
    try:
        recipe = load_recipe(str(run.recipe), [])
    except UserError as error:
        return Earlier(notes=[f"{error}; {UNCHECKED}"]), None
    stages = OF_ONE_STAGE.get(inside[0], recipe.training_stages)
    trained = recipe.model_copy(update={"stages": stages})
    data, errors = examine_data(trained, needed_sets(trained))
    sets = data.training_sets()
    changed = [name for name, rows in sets.items() if rows.sha256 != _recorded(run, name, rows.sha256)]
    notes = [f"{run.folder}: {error}; {UNCHECKED}" for error in errors]
    notes += [f"{run.folder}: {name} has changed since the run; its present rows are checked" for name in changed]
    named: dict[str, AnySet] = {f"{run.folder} ({name})": rows for name, rows in sets.items()}
    return Earlier(named, notes), recipe.model.source


def _recorded(run: RunFolder, name: str, unknown: str) -> object:
    """The hash of a set's rows in environment.json; `unknown` where it says none, or is damaged."""
    sets = read_object(run.environment).get("data")
    facts = sets.get(name) if isinstance(sets, dict) else None
    return facts.get("sha256", unknown) if isinstance(facts, dict) else unknown


def _sources(folder: Path) -> list[object]:
    """What a model was made from, as the records in its folder name it."""
    found = [read_object(folder / record).get("source") for record in (BASELINE_RECORD, EXPORT_RECORD)]
    with suppress(UserError):  # a damaged file is reported where it is used
        found.append(base_of_adapter(folder))
    return found
