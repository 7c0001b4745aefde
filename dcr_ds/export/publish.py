"""Make an exported folder fit for publication: no local paths, and a base model that others can download."""

import re
from pathlib import Path
from typing import Any

from dcr_ds.errors import UserError
from dcr_ds.files import read_object, write_atomically, write_json
from dcr_ds.models.checkpoint_files import BASE_RECORD
from dcr_ds.recipe.urls import HUB_ID
from dcr_ds.report.numbers.public import public_text

CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]+)")  # in the cache of the hub
ADAPTER = "adapter_config.json"
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", ADAPTER)


def make_public(folder: Path, base: str | None) -> None:
    """Replace local paths in the card and the configurations of an exported folder.

    Args:
        base: hub id of an adapter's base model; None: found from where the base was downloaded.

    Raises:
        UserError: an adapter's base model is a local folder, which nobody else has.
    """
    if (folder / ADAPTER).is_file():
        _name_base(folder, base)
    card = folder / "README.md"  # of a run: written by this package, or by its owner
    if card.is_file():
        write_atomically(card, public_text(card.read_text(encoding="utf-8", errors="replace")))
    for name in CONFIGS:
        values = read_object(folder / name)
        if (public := {key: _without_folder(value) for key, value in values.items()}) != values:
            write_json(folder / name, public)


def _name_base(folder: Path, base: str | None) -> None:
    config = read_object(folder / ADAPTER)
    recorded = str(config.get("base_model_name_or_path") or "")
    cached = CACHED.search(recorded)
    hub_id = f"{cached[1]}/{cached[2]}" if cached else recorded
    hub_id = base if base and not Path(base).exists() else hub_id
    if not HUB_ID.fullmatch(hub_id) or Path(hub_id).exists():
        raise UserError(
            f"--push: the base model of this adapter is the local folder {recorded}, which nobody else has; push a "
            "whole model with --merge, or name the same model on the hub with --base"
        )
    revision = {"revision": cached[3]} if cached and hub_id == f"{cached[1]}/{cached[2]}" else {}
    write_json(folder / ADAPTER, config | {"base_model_name_or_path": hub_id} | revision)
    if record := read_object(folder / BASE_RECORD):
        write_json(folder / BASE_RECORD, record | {"source": hub_id})


def _without_folder(value: Any) -> Any:
    """The last part of an absolute path; any other value as it is."""
    is_path = isinstance(value, str) and re.match(r"(~|[A-Za-z]:)?[/\\].*[/\\]", value) and "\n" not in value
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_path else value
