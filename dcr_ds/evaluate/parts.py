"""A file of rows that several ranks write: each appends to a part of its own, and rank 0 merges the parts.

A row has the id of its prompt and `settings_hash`, a hash of everything that it depends on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcr_ds.data import Prompt
from dcr_ds.files import read_whole_rows, write_jsonl


def part_file(file: Path, rank: int) -> Path:
    """The file that a rank writes."""
    return file.with_name(f"{file.stem}.rank{rank:04d}{file.suffix}")


def read_with_parts(file: Path, fields: Mapping[str, Any]) -> list[dict]:
    """The whole rows of a file and of its parts."""
    return [row for path in [file, *_parts(file)] for row in read_whole_rows(path, fields)]


def write_merged(file: Path, rows: Sequence[dict]) -> None:
    """Write the rows of a file and remove its parts. Rank 0."""
    parts = _parts(file)
    write_jsonl(file, rows)
    for part in parts:
        part.unlink()


def is_merged(file: Path, fields: Mapping[str, Any], prompts: Sequence[Prompt], settings_hash: str) -> bool:
    """Whether a file has every row, in the order of the prompts and under these settings, and no parts are left."""
    rows = read_whole_rows(file, fields)
    return (
        [row["id"] for row in rows] == [prompt.id for prompt in prompts]
        and all(row["settings_hash"] == settings_hash for row in rows)
        and not _parts(file)
    )


def _parts(file: Path) -> list[Path]:
    return sorted(file.parent.glob(f"{file.stem}.rank*{file.suffix}"))
