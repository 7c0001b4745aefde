"""Small files that are whole or absent, also after a crash: written aside, flushed to the disk, renamed."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, making its folder; a reader finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    with aside.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())  # a rename may reach the disk before the content does
    aside.replace(path)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():  # some file systems have no such call
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is either wholly there or as it was before."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write a file of JSON lines that is either wholly there or as it was before."""
    write_atomically(path, "".join(json_line(row) for row in rows))


def json_line(row: dict) -> str:
    """One row as a line of its own."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is none, or it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def read_jsonl(path: Path) -> list[dict]:
    """The whole rows of a file of JSON lines; a line torn by a killed writer is left out."""
    rows = []
    # Not str.splitlines: it also splits at U+2028 and the like, which models do write.
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # also raised for a character torn in the middle
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def hash_of(value: Any) -> str:
    """Short hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
