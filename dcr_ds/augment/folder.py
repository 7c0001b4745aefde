"""The folder of a baseline: its training data, and the recipe that trains on it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcr_ds.data.records import Conversation
from dcr_ds.errors import UserError
from dcr_ds.files import write_atomically, write_jsonl
from dcr_ds.new_folder import is_taken
from dcr_ds.recipe import Recipe, change_recipe, dump_recipe

RECIPE, GENERAL, REFUSALS, ANSWERS = "recipe.yaml", "general.jsonl", "refusals.jsonl", "answers.jsonl"
UNFINISHED = ".unfinished"


def check_alignment(recipe: Recipe, baseline: str) -> None:
    """Raise UserError unless a recipe aligns by SFT, whose data a baseline changes."""
    if "align" not in recipe.stages:
        raise UserError(f"{baseline}: the recipe's stages have no align, whose data this baseline changes")
    if recipe.align.method != "sft":
        raise UserError(
            f"{baseline}: align.method is {recipe.align.method}; this baseline changes the data of SFT: set "
            "--align.method sft"
        )


def check_output(folder: Path) -> None:
    """Raise UserError if something is in the folder to be written."""
    if is_taken(folder):
        raise UserError(f"--out: {folder} exists already; name another folder, or remove it")


def unfinished_folder(folder: Path) -> Path:
    """Where the files of a folder are collected until it is complete; an interrupted command continues from there."""
    return folder.with_name(folder.name + UNFINISHED)


@contextmanager
def written_at_once(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, which gets its name when it is complete. Rank 0."""
    unfinished = unfinished_folder(folder)
    unfinished.mkdir(parents=True, exist_ok=True)
    yield unfinished
    if folder.is_dir():
        folder.rmdir()  # it is empty
    unfinished.rename(folder)


def baseline_recipe(recipe: Recipe, baseline: str, files: Mapping[str, Path], **changes: Any) -> Recipe:
    """The recipe of a baseline: an alignment without refine on other data.

    Args:
        files: by field of the section `data`.
        changes: value by field of the section `align`.
    """
    fields: dict[str, Any] = {
        "name": f"{recipe.name}-{baseline}",
        "stages": [stage for stage in recipe.stages if stage != "refine"],
        "control": "none",
    }
    fields |= {f"data.{name}": {"source": str(path.absolute())} for name, path in files.items()}
    return change_recipe(recipe, fields | {f"align.{name}": value for name, value in changes.items()})


def write_recipe(file: Path, recipe: Recipe, notes: Sequence[str]) -> None:
    """Write a recipe with notes as comments."""
    comments = "".join(f"# {note}\n" for note in notes)
    write_atomically(file, comments + dump_recipe(recipe))


def write_conversations(file: Path, rows: Sequence[Conversation]) -> None:
    """Write conversations as rows of messages."""
    write_jsonl(
        file,
        (
            {
                "id": row.id,
                "messages": list(row.messages),
                **({"category": row.category} if row.category is not None else {}),
            }
            for row in rows
        ),
    )
