"""What is published about a run names no folders of the machine that it ran on."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_ds.report.numbers.read import Run

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+( \(.*\))?")
DATA_FILE = re.compile(r"\.(csv|jsonl?|parquet)(\.gz)?$", re.IGNORECASE)
ABSOLUTE = re.compile(r"(?<![\w:/.~<])(?:~|\.{1,2})?/(?:[^\s/'\"`|()<>]+/)+([^\s/'\"`|()<>]+)")
FIELDS = ("source", "chat_template", "local_data", "deepspeed", "guard")  # that may hold paths


def public_source(source: str) -> str:
    """The name of a file or folder without where it is; hub ids, URLs and names stay."""
    is_hub_id = HUB_ID.fullmatch(source) and not DATA_FILE.search(source) and not Path(source).exists()
    if is_hub_id or re.match(r"https?://", source) or not re.search(r"[/\\~]", source):
        return source
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def public_text(text: str) -> str:
    """A text with each absolute path replaced by its last part."""
    return ABSOLUTE.sub(lambda match: match[1], text)


def public_run(run: Run) -> Run:
    """A run whose recipe and environment name no folders."""
    return replace(run, recipe=_public(run.recipe), environment=_public(run.environment))


def _public(values: Any, field: str = "") -> Any:
    if isinstance(values, dict):
        return {key: _public(value, key) for key, value in values.items()}
    if isinstance(values, list):
        return [_public(value, field) for value in values]
    if not isinstance(values, str):
        return values
    return public_source(values) if field in FIELDS else public_text(values)
