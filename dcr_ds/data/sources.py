"""Locate and read the table of a data source: a built-in set, a file, a URL or the hub."""

import difflib
import hashlib
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_ds.data.download import check_hash, fetch, forget
from dcr_ds.data.formats import parse_table, unknown_format
from dcr_ds.data.shipped import read_shipped
from dcr_ds.data.tables import ENDINGS, Origin, Table, known_ending, numbered, table_of
from dcr_ds.errors import UserError, one_line
from dcr_ds.files import expand_user
from dcr_ds.recipe import DataSource, find_file
from dcr_ds.recipe.urls import HUB_ID, STORES, URL, expand_variables, is_local, mask_secrets

Parse = Callable[[bytes, str, Origin], Table]


def read_table(source: DataSource, name: str, field: str, parse: Parse = parse_table) -> Table:
    """All rows of a source, before any filter.

    A source is `builtin`, a URL of the web or of an object store, a file (relative to the working directory or to the
    project), or a hub id `owner/name`. The network is used only for URLs and hub ids.

    Args:
        name: which built-in set `builtin` means, a key of `shipped.FILES`.
        field: dotted name of the field in the recipe, for messages.
        parse: of the content of a file, its name and its origin.
    """
    source = source.model_copy(update={"source": expand_variables(source.source, field)})
    if source.source == "builtin":
        _refuse_hash(source, field)
        return read_shipped(source, name, field)
    if URL.match(source.source):
        return _read_url(source, field, parse)
    path = find_file(source.source)
    if path is None and _is_hub_id(source.source):
        _refuse_hash(source, field)
        return _read_hub(source, field)
    origin = _file_origin(source.source, field)
    if path is None:
        raise origin.error(_missing_file(source.source))
    _refuse_hub_fields(source, origin)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise origin.error(f"cannot be read ({error.strerror})") from None
    return _parsed(parse, content, path.name, source, origin)


def _parsed(parse: Parse, content: bytes, filename: str, source: DataSource, origin: Origin) -> Table:
    digest = hashlib.sha256(content).hexdigest()
    check_hash(digest, source.sha256, origin)
    return replace(parse(content, filename, origin), version=f"sha256:{digest}")


def _refuse_hash(source: DataSource, field: str) -> None:
    if source.sha256:
        raise Origin(field, source.source, "").error("sha256 applies to files and URLs; for hub data sets set revision")


def _file_origin(path: str, field: str) -> Origin:
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return Origin(field, path, name[: len(name) - len(known_ending(name) or "")])


def _is_hub_id(source: str) -> bool:
    """Whether a source that is not a file is a hub id: owner/name, unless there is a local folder named owner."""
    return bool(HUB_ID.fullmatch(source)) and not known_ending(source) and not Path(source).parent.exists()


def _missing_file(source: str) -> str:
    """Why there is no file at a path, and what is there instead."""
    path = expand_user(source)
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if known_ending(entry.name))[:5]
        return f"is a folder; choose a file in it{': ' + ', '.join(inside) if inside else ''}"
    if "://" in source:
        schemes = ", ".join(f"{scheme}://" for scheme in ("https", "http", *STORES))
        return f"files of this machine are named without ://, and URLs begin with {schemes}"
    if path.is_symlink() and not path.exists():
        return f"is a link to {path.readlink()}, which does not exist"
    if source == "-" or path.exists():
        return "a stream or device cannot be read, as the data is read more than once; save it to a file"
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


def _read_url(source: DataSource, field: str, parse: Parse) -> Table:
    """Download a file. The query and the password of the URL are kept out of messages and records."""
    try:
        parts = urllib.parse.urlsplit(source.source)
    except ValueError:
        raise UserError(f"{field}: {mask_secrets(source.source)}: could not be downloaded: not a valid URL") from None
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    origin = _file_origin(shown, field)
    _refuse_hub_fields(source, origin)
    if known_ending(parts.path) is None and parse is parse_table:
        raise unknown_format(parts.path, origin)
    if parts.scheme == "http" and mask_secrets(source.source) != source.source and not is_local(source.source):
        raise origin.error("a secret in a URL would be sent unencrypted; use https")
    content = fetch(source.source, source.sha256, origin)
    try:
        return _parsed(parse, content, parts.path, source, origin)
    except UserError:
        forget(source.source)
        raise


def _read_hub(source: DataSource, field: str) -> Table:
    """Read a split of a hub data set with `datasets` and its cache; no code of the data set is executed."""
    import datasets

    split, revision = source.split or "train", source.revision
    shown = f"{source.source} ({split}{', revision ' + revision if revision else ''})"
    origin = Origin(field, shown, source.source.rsplit("/", 1)[-1])
    try:
        data = datasets.load_dataset(source.source, source.subset, split=split, revision=revision)
        cells = data.to_list()
    except Exception as error:  # datasets, huggingface_hub, httpx and pyarrow all raise exceptions of their own
        reason = one_line(error)  # a missing subset has those that there are in its second line
        raise origin.error(
            f"not a local file, and could not be downloaded from the hub ({reason}). Check the name, subset, split, "
            "revision and network (HF_HUB_OFFLINE disables downloads), or use a local file: "
            + origin.setting("source", "prompts.jsonl")
        ) from None
    return replace(table_of(numbered(cells), origin), version=_commit(data))


def _commit(data: Any) -> str | None:
    """The commit of a hub data set, from the addresses of its files; None where they are not recorded."""
    addresses = getattr(getattr(data, "info", None), "download_checksums", None) or {}
    commits = {match[1] for address in addresses if (match := re.search(r"@([0-9a-f]{40})/", address))}
    return f"commit:{commits.pop()}" if len(commits) == 1 else None
