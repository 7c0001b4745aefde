"""The run folder: opened, checked against the recipe, and described."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from filelock import FileLock, Timeout

from dcr_ds.engine.distributed import Ranks, broadcast_from_main
from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically
from dcr_ds.recipe import STAGES, TRAINING_STAGES, Recipe, dump_recipe
from dcr_ds.recipe.layout import RunFolder

LOCK_SECONDS = 60
# what may differ between the run in a folder and a run that goes on there: it changes no weight
FREE = (
    "output",
    "stages",
    "control",
    "deepspeed",
    "log_every",
    "tensorboard",
    "profile_steps",
    "checkpoint",
    "watchdog",
)


def open_run(recipe: Recipe, redo: str | None) -> Recipe:
    """Make or reopen the run folder, and return the recipe with each `auto` that an earlier run resolved.

    Args:
        redo: a stage to do again, with the stages after it, or `all`; `clear_stages` removes their outputs.

    Raises:
        UserError: the folder cannot be made, or it holds another recipe's run.
    """
    folder = recipe.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the run folder cannot be made ({error.strerror}); set --output elsewhere") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: the run folder cannot be written to; set --output elsewhere")
    redone = _redone(redo)
    run = RunFolder(folder)
    trained = [stage for stage in TRAINING_STAGES if stage not in redone and run.stage(stage).has_results]
    saved = _saved_recipe(run) if trained else None
    if saved and (different := _what_differs(saved, recipe, trained)):
        raise UserError(
            f"{folder}: holds another recipe's run:\n" + "\n".join(different) + "\nGive this one another --name or "
            "--output, or do the stages again with --redo refine, --redo align or --redo all"
        )
    if "refine" in recipe.stages and trained == ["align"]:
        raise UserError(
            f"{run.stage('align').folder}: was aligned without refine; give this run another --name or --output, or "
            "run stage 2 again with --redo align"
        )
    return _keep_resolved(recipe, saved) if saved else recipe


@contextmanager
def run_alone(recipe: Recipe, ranks: Ranks) -> Iterator[None]:
    """Hold the run folder against a second run in it. All ranks; the lock ends with rank 0's process, however it ends.

    Raises:
        UserError: another run is still there after `LOCK_SECONDS`; the ranks of one that was killed end within them.
    """
    lock = FileLock(RunFolder(recipe.folder).lock, timeout=LOCK_SECONDS)
    taken = True
    if ranks.is_main:
        try:
            lock.acquire()
        except Timeout:
            taken = False
    if not broadcast_from_main(taken, ranks):
        raise UserError(
            f"{recipe.folder}: another run is under way in this folder; wait for it, end it, or give this one another "
            "--name"
        )
    try:
        yield
    finally:
        lock.release()


def clear_stages(recipe: Recipe, redo: str | None) -> None:
    """Remove the outputs of the stages that are done again; after every check. Rank 0."""
    # the control depends on align alone, so that it stays when refine is done again
    control = ("control",) if redo in ("align", "all") else ()
    for stage in (*_redone(redo), *control):
        shutil.rmtree(RunFolder(recipe.folder).stage(stage).folder, ignore_errors=True)


def _redone(redo: str | None) -> tuple[str, ...]:
    return STAGES if redo == "all" else STAGES[STAGES.index(redo) :] if redo else ()


def has_control(recipe: Recipe) -> bool:
    """Whether a run trains a control: it aligns, and what it aligns was refined."""
    refines = "refine" in recipe.stages or RunFolder(recipe.folder).stage("refine").is_done
    return recipe.control == "stl" and "align" in recipe.stages and refines


def _what_differs(saved: dict[str, Any], recipe: Recipe, trained: Sequence[str]) -> list[str]:
    """A line for every field that differs and may not; those of a stage that is still to be trained may."""
    free = {*FREE, *STAGES} - set(trained)
    values = recipe.model_dump(mode="json")
    return [
        f"  {name}: {old} there, {new} now"
        for name, old, new in _differences(saved, values)
        if name.partition(".")[0] not in free and not name.endswith((".micro_batch", ".packed_length", ".on_failure"))
    ]


def save_run(recipe: Recipe, environment: dict[str, Any]) -> None:
    """Write recipe.yaml, from which the same run starts again, and environment.json. Rank 0."""
    run = RunFolder(recipe.folder)
    saved = _saved_recipe(run) if run.has_results else None
    if saved:
        # a run that goes on with fewer stages (say, evaluate alone) is still the run that it was
        stages = [stage for stage in STAGES if stage in (*recipe.stages, *saved["stages"])]
        recipe = recipe.model_copy(update={"stages": stages})
        if run.environment.is_file():
            before = json.loads(run.environment.read_text(encoding="utf-8"))
            environment["data"] = before["data"] | environment["data"]
            for name in ("notes", "overlaps"):
                environment[name] = list(dict.fromkeys([*before[name], *environment[name]]))
    write_atomically(run.environment, json.dumps(environment, indent=1, ensure_ascii=False))
    write_atomically(run.recipe, dump_recipe(recipe))


def _saved_recipe(run: RunFolder) -> dict[str, Any] | None:
    path = run.recipe
    if not path.is_file():
        return None
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).model_dump(mode="json")
    except (ValueError, yaml.YAMLError):
        raise UserError(
            f"{path}: not a recipe this version reads; give this run another --name, or remove the folder"
        ) from None


def _differences(saved: Any, asked: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Fields that differ, except where the one asked for is `auto`, which means what was resolved before."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        names = [name for name in asked if name in saved]
        return [row for name in names for row in _differences(saved[name], asked[name], f"{prefix}{name}.")]
    return [] if asked in ("auto", saved) else [(prefix[:-1], saved, asked)]


def _keep_resolved(recipe: Recipe, saved: dict[str, Any]) -> Recipe:
    """Each `auto` as it was resolved before, except how batches are cut, which depends on ranks and device."""
    values = recipe.model_dump()
    for section, name in (("model", "dtype"), ("model", "attention"), ("model", "kernels"), ("refine", "layer")):
        if values[section][name] == "auto":
            values[section][name] = saved[section][name]
    return Recipe.model_validate(values)
