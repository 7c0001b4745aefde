"""Where a table comes from: the shipped sets, a file, a URL or the hub."""

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
    """The rows of a source as they stand there, before any filter.

    A source is `builtin`, a URL, a file as given or beside the package, or else a hub id `owner/name`.
    Nothing is fetched unless a URL or a hub id is given.

    Args:
        name: which shipped set `builtin` means: seemingly_toxic, toxic, general or refusals.
        field: the dotted name of the field in the recipe, for messages.
    """
    if source.source == "builtin":
        return read_shipped(source, name, field)
    if re.match(r"https?://", source.source):
        return _read_url(source, field)
    found = find_file(source.source)
    if found is None and _is_hub_id(source.source):
        return _read_hub(source, field)
    origin = _file_origin(source.source, field)
    if found is None:
        raise origin.error(_missing_file(source.source))
    _refuse_hub_fields(source, origin)
    try:
        content = found.read_bytes()
    except OSError as error:
        raise origin.error(f"cannot be read ({error.strerror})") from None
    return parse_table(content, found.name, origin)


def _file_origin(path: str, field: str) -> Origin:
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return Origin(field, path, name[: len(name) - len(known_ending(name) or "")])


def _is_hub_id(source: str) -> bool:
    """Whether a source that is no file is a hub id: owner/name, with no folder here called like the owner."""
    return bool(HUB_ID.fullmatch(source)) and not known_ending(source) and not Path(source).parent.exists()


def _missing_file(source: str) -> str:
    """What to say of a path at which there is no file."""
    path = Path(source).expanduser()
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if known_ending(entry.name))[:5]
        return f"is a folder; name a file in it{': ' + ', '.join(inside) if inside else ''}"
    if not path.parent.is_dir():
        return f"no such file; there is no folder {path.parent} either"
    names = [entry.name for entry in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"; near names there: {', '.join(near)}" if near else ""
    kinds = ", ".join(ENDINGS)
    return f"no such file{hint}. A source is builtin, a file ({kinds}), a URL or a hub id owner/name"


def _refuse_hub_fields(source: DataSource, origin: Origin) -> None:
    for key in ("split", "revision"):
        if value := getattr(source, key):
            raise origin.error(
                f"{key} {value!r} is for hub data sets and this is a file; leave {key} out"
                + (" (rows of a file are chosen with where, rows and skip)" if key == "split" else "")
            )


def _read_url(source: DataSource, field: str) -> Table:
    """A file behind http(s); the query and any password of the URL stay out of messages and records."""
    parts = urllib.parse.urlsplit(source.source)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    origin = _file_origin(shown, field)
    _refuse_hub_fields(source, origin)
    if known_ending(parts.path) is None:
        raise origin.error(f"unknown kind of file; a data file ends in {', '.join(ENDINGS)}")
    try:
        with urllib.request.urlopen(source.source, timeout=URL_TIMEOUT_SECONDS) as reply:
            content = reply.read()
    except urllib.error.HTTPError as error:
        raise origin.error(f"the server answered {error.code} {error.reason}; check the address") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise origin.error(f"could not be fetched ({reason}); check the network, or give a local file") from None
    if content.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise origin.error("is a web page, not a data file; give the address of the raw file")
    return parse_table(content, parts.path, origin)


def _read_hub(source: DataSource, field: str) -> Table:
    """A split of a hub data set through `datasets`, with its own cache; no code of the data set is run."""
    import datasets

    split, revision = source.split or "train", source.revision
    shown = f"{source.source} ({split}{', revision ' + revision if revision else ''})"
    origin = Origin(field, shown, source.source.rsplit("/", 1)[-1])
    try:
        cells = datasets.load_dataset(source.source, source.subset, split=split, revision=revision).to_list()
    except Exception as error:  # datasets, huggingface_hub, httpx and pyarrow each raise kinds of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise origin.error(
            f"no such file here, and it could not be read from the hub ({reason}). Check the name, split, "
            "revision and network (HF_HUB_OFFLINE forbids it), or give a local file: "
            + origin.setting("source", "prompts.jsonl")
        ) from None
    return table_of(cells, number_rows(cells), origin)
