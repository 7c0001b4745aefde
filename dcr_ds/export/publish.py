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


def make_public(folder: Path) -> None:
    """Replace local paths in the card and the configurations of an exported folder.

    Raises:
        UserError: an adapter's base model is a local folder, which nobody else has.
    """
    if (folder / ADAPTER).is_file():
        _name_public_base(folder)
    card = folder / "README.md"  # of a run: written by this package, or by its owner
    if card.is_file():
        write_atomically(card, public_text(card.read_text(encoding="utf-8", errors="replace")))
    for name in CONFIGS:
        values = read_object(folder / name)
        if (public := {key: _without_folder(value) for key, value in values.items()}) != values:
            write_json(folder / name, public)


def name_base(adapter: Path, base: str, revision: str | None = None) -> None:
    """Write the base model of an adapter into its files: a hub id with its revision, or a folder."""
    config = read_object(adapter / ADAPTER)
    write_json(adapter / ADAPTER, config | {"base_model_name_or_path": base, "revision": revision})
    if record := read_object(adapter / BASE_RECORD):
        write_json(adapter / BASE_RECORD, record | {"source": base})


def _name_public_base(adapter: Path) -> None:
    config = read_object(adapter / ADAPTER)
    recorded = str(config.get("base_model_name_or_path") or "")
    if cached := CACHED.search(recorded):
        return name_base(adapter, f"{cached[1]}/{cached[2]}", cached[3])
    if not HUB_ID.fullmatch(recorded) or Path(recorded).exists():
        raise UserError(
            f"--push: the base model of this adapter is the local folder {recorded}, which nobody else has; push a "
            "whole model with --merge, or name the same model on the hub with --base"
        )


def _without_folder(value: Any) -> Any:
    """The last part of an absolute path; any other value as it is."""
    is_path = isinstance(value, str) and re.match(r"(~|[A-Za-z]:)?[/\\].*[/\\]", value) and "\n" not in value
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_path else value
