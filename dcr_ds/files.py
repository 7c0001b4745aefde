"""Atomic writes of small files, and JSON helpers: written to a temporary file, flushed to disk, renamed."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically, creating its folder: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())  # a rename may reach the disk before the content does
    partial.replace(path)


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():  # not supported by all file systems
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write a JSON Lines file atomically."""
    write_atomically(path, "".join(json_line(row) for row in rows))


def json_line(row: dict) -> str:
    """Return a row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError for anything that cannot be parsed, also for nesting a thousand deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it does not exist or is not valid JSON."""
    try:
        return parse_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def read_jsonl(path: Path) -> list[dict]:
    """Return the rows of a JSON Lines file; a line that was torn when its writer was killed is left out."""
    rows = []
    # Not str.splitlines: it also splits at U+2028 and the like, which models do write.
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = parse_json(line)
        except ValueError:  # also raised for a character torn in the middle
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def hash_of(value: Any) -> str:
    """Return a short hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
