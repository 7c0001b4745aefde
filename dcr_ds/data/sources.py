"""Locate and read the table of a data source: a built-in set, a file, a URL or the hub."""

import difflib
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from dcr_ds.data.shipped import read_shipped
from dcr_ds.data.tables import ENDINGS, Origin, Table, known_ending, number_rows, parse_table, table_of
from dcr_ds.recipe import DataSource, find_file

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
URL_TIMEOUT_SECONDS = 30


def read_table(source: DataSource, name: str, field: str) -> Table:
    """All rows of a source, before any filter.

    A source is `builtin`, a URL, a file (relative to the working directory or to the project), or a hub id
    `owner/name`. The network is used only for URLs and hub ids.

    Args:
        name: which built-in set `builtin` means, a key of `shipped.FILES`.
        field: dotted name of the field in the recipe, for messages.
    """
    if source.source == "builtin":
        return read_shipped(source, name, field)
    if re.match(r"https?://", source.source):
        return _read_url(source, field)
    path = find_file(source.source)
    if path is None and _is_hub_id(source.source):
        return _read_hub(source, field)
    origin = _file_origin(source.source, field)
    if path is None:
        raise origin.error(_missing_file(source.source))
    _refuse_hub_fields(source, origin)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise origin.error(f"cannot be read ({error.strerror})") from None
    return parse_table(content, path.name, origin)


def _file_origin(path: str, field: str) -> Origin:
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return Origin(field, path, name[: len(name) - len(known_ending(name) or "")])


def _is_hub_id(source: str) -> bool:
    """Whether a source that is not a file is a hub id: owner/name, unless there is a local folder named owner."""
    return bool(HUB_ID.fullmatch(source)) and not known_ending(source) and not Path(source).parent.exists()


def _missing_file(source: str) -> str:
    """Why there is no file at a path, and what is there instead."""
    path = Path(source).expanduser()
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if known_ending(entry.name))[:5]
        return f"is a folder; choose a file in it{': ' + ', '.join(inside) if inside else ''}"
    if not path.parent.is_dir():
        return f"no such file; the folder {path.parent} does not exist"
    names = [entry.name for entry in path.parent.iterdir()]
    similar = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"; similar names in that folder: {', '.join(similar)}" if similar else ""
    kinds = ", ".join(ENDINGS)
    return f"no such file{hint}. A source is `builtin`, a file ({kinds}), a URL or a hub id owner/name"


def _refuse_hub_fields(source: DataSource, origin: Origin) -> None:
    for key in ("split", "revision"):
        if value := getattr(source, key):
            raise origin.error(
                f"{key} {value!r} applies to hub data sets, but this is a file; remove {key}"
                + (" (select rows of a file with where, rows and skip)" if key == "split" else "")
            )


def _read_url(source: DataSource, field: str) -> Table:
    """Download a file. The query and the password of the URL are kept out of messages and records."""
    parts = urllib.parse.urlsplit(source.source)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    origin = _file_origin(shown, field)
    _refuse_hub_fields(source, origin)
    if known_ending(parts.path) is None:
        raise origin.error(f"unknown file format; data files end in {', '.join(ENDINGS)}")
    try:
        with urllib.request.urlopen(source.source, timeout=URL_TIMEOUT_SECONDS) as reply:
            content = reply.read()
    except urllib.error.HTTPError as error:
        raise origin.error(f"the server responded {error.code} {error.reason}; check the URL") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise origin.error(f"could not be downloaded ({reason}); check the network, or use a local file") from None
    if content.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise origin.error("is a web page, not a data file; use the URL of the raw file")
    return parse_table(content, parts.path, origin)


def _read_hub(source: DataSource, field: str) -> Table:
    """Read a split of a hub data set with `datasets` and its cache; no code of the data set is executed."""
    import datasets

    split, revision = source.split or "train", source.revision
    shown = f"{source.source} ({split}{', revision ' + revision if revision else ''})"
    origin = Origin(field, shown, source.source.rsplit("/", 1)[-1])
    try:
        cells = datasets.load_dataset(source.source, source.subset, split=split, revision=revision).to_list()
    except Exception as error:  # datasets, huggingface_hub, httpx and pyarrow all raise exceptions of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise origin.error(
            f"not a local file, and could not be downloaded from the hub ({reason}). Check the name, split, revision "
            "and network (HF_HUB_OFFLINE disables downloads), or use a local file: "
            + origin.setting("source", "prompts.jsonl")
        ) from None
    return table_of(cells, number_rows(cells), origin)
