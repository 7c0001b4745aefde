"""Atomic writes of small files (temporary file, flushed to disk, renamed), JSON helpers, and the cache folder."""

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dcr_ds.errors import UserError

REPEAT = "repeat the command that writes it"
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


def cache_folder() -> Path:
    """The folder of converted models and downloaded data: $DCR_DS_CACHE, or dcr_ds in the user's cache folder."""
    home = expand_user("~")
    default = home / ".cache" if home.is_absolute() else Path(tempfile.gettempdir())  # a user without a home
    return Path(os.environ.get("DCR_DS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or default) / "dcr_ds")


def expand_user(path: str) -> Path:
    """A path with ~ replaced by the home folder, as far as it is known."""
    return Path(os.path.expanduser(path))


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically, creating its folder: readers see the old content or the new, never a part.

    Of a link, the file that it names is written.
    """
    refuse_device(path)
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())  # a rename may reach the disk before the content does
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # that a full disk does not name
        raise


def refuse_device(path: Path) -> None:
    """Raise UserError for a device or pipe such as /dev/null, which a rename would replace by a file."""
    process_files = Path("/proc")  # to which /dev/stdout leads
    is_stream = path.parent.resolve().is_relative_to(process_files) or (
        path.is_symlink() and path.readlink().is_relative_to(process_files)
    )
    if is_stream or (path.exists() and not path.is_file() and not path.is_dir()):
        raise UserError(f"{path}: is a device or pipe, which cannot be written atomically; name a file")


def free_bytes(folder: Path) -> int | None:
    """Free space of the file system of a folder, or of its nearest parent that exists; None if it is not reported."""
    usage = shutil.disk_usage(existing_part(folder))
    return usage.free if usage.total > 0 else None  # some network file systems report 0 bytes of 0


def existing_part(path: Path) -> Path:
    """A path, absolute, or the nearest of its parents that exists."""
    path = path.absolute()
    return next(part for part in (path, *path.parents) if part.exists())


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


def parse_json(text: str | bytes, unique_keys: bool = False) -> Any:
    """Parse JSON. Raises ValueError for anything that cannot be parsed, also for nesting a thousand deep.

    Args:
        unique_keys: refuse an object with the same key twice, of which Python takes the last.
    """
    try:
        return json.loads(text, object_pairs_hook=with_unique_keys if unique_keys else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def without_nan(value: Any) -> Any:
    """Return a JSON value in which NaN and infinities, which JSON does not have, are null."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class DoubledKey(ValueError):
    """An object has the same key twice."""


def with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these keys, as `object_pairs_hook` of the json module. Raises DoubledKey."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DoubledKey(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return values


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it does not exist or is not valid JSON."""
    try:
        return parse_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is none, or the file is damaged."""
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def read_jsonl(path: Path, fields: Sequence[str] = ()) -> list[dict]:
    """Return the rows of a JSON Lines file; none if it does not exist.

    Args:
        fields: that each row must have.

    Raises:
        UserError: naming the first line that is damaged or lacks a field.
    """
    rows = []
    for place, content in placed_lines(path):
        row = json_at(place, content)
        check_fields(row, fields, place)
        rows.append(row)
    return rows


def json_at(place: object, content: bytes, advice: str = REPEAT) -> Any:
    """Parse JSON. Raises UserError that names the place and says what to do."""
    try:
        return parse_json(content)
    except ValueError as error:  # also raised for a character torn in the middle
        raise UserError(f"{place}: is not JSON ({error}); {advice}") from None


def check_fields(content: Any, fields: Sequence[str], place: object) -> None:
    """Raise UserError unless a value read from JSON is a mapping with these fields."""
    if not isinstance(content, dict):
        raise UserError(f"{place}: is not a mapping; {REPEAT}")
    if missing := [field for field in fields if field not in content]:
        raise UserError(f"{place}: has no {', '.join(missing)}, as another version or program wrote it; {REPEAT}")


def read_whole_rows(path: Path, fields: Mapping[str, Any] = NO_FIELDS, is_reported: bool = True) -> list[dict]:
    """Return the rows of a file that is written row by row, for a writer that writes again what is missing.

    A line that is not an object with these fields is left out: one that was torn when its writer was killed, or another
    damage, which is reported if `is_reported`.

    Args:
        fields: that each row must have, each with the type, or a tuple of types, of its value.
    """
    rows, damaged = [], []
    for place, content in placed_lines(path):
        try:
            row = parse_json(content)
        except ValueError:
            row = None
        if isinstance(row, dict) and all(field in row and isinstance(row[field], fields[field]) for field in fields):
            rows.append(row)
        else:
            damaged.append(place)
    if is_reported and damaged and place != damaged[0]:  # not only the last line
        print(f"{damaged[0]}: is damaged ({len(damaged)} lines); written again", file=sys.stderr)
    return rows


def refuse_other_rows(path: Path, fields: Sequence[str], what: str) -> None:
    """Raise UserError unless each row of a file that is to be written again has one of these fields.

    Args:
        what: rows with these fields are, for the message.
    """
    rows = read_whole_rows(path, is_reported=False)
    if not all(any(field in row for field in fields) for row in rows) or (
        not rows and path.exists() and path.stat().st_size
    ):
        raise UserError(f"{path}: exists and does not contain {what}; choose another file, or move this one away")


def placed_lines(path: Path) -> list[tuple[str, bytes]]:
    """The lines of a file that are not blank, with their places for messages; none if it does not exist."""
    # Not str.splitlines: it also splits at U+2028 and the like, which models do write.
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def hash_of(value: Any) -> str:
    """Return a short hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
