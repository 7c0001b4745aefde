"""Names of the models that a command line lists: MODEL or NAME=MODEL."""

import re
from collections.abc import Sequence
from pathlib import Path

from dcr_ds.errors import UserError
from dcr_ds.evaluate.targets import ENDPOINT
from dcr_ds.recipe import STAGES

NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.*)", re.DOTALL)


def named_models(words: Sequence[str]) -> dict[str, str]:
    """Models by name, in order: NAME of NAME=MODEL, else a name made from the model.

    Raises:
        UserError: a name has no model or cannot be that of a folder, or two models have the same name.
    """
    named: dict[str, str] = {}
    for word in words:
        match = NAMED.fullmatch(word)
        name, model = match.groups() if match else (_name_of(word), word)
        name_given, separator, _ = word.partition("=")
        if not match and separator and "/" not in name_given and not Path(word).exists():
            raise UserError(
                f"{word}: {name_given!r} is not a valid name; use letters, digits, '.', '_' and '-', and begin "
                "with a letter or digit"
            )
        if not model.strip():
            raise UserError(f"{word} names no model; is a variable of the shell not set?")
        if name in named:
            raise UserError(
                f"two models have the name {name!r}: {named[name]} and {model}; name them: a={named[name]} b={model}"
            )
        named[name] = model
    return named


def _name_of(model: str) -> str:
    """The last part of a path, hub id or endpoint's model; for a stage of a run, `<run>-<stage>`."""
    remote = ENDPOINT.fullmatch(model)
    parts = Path(remote[2] if remote else model).parts or ("model",)
    is_of_a_stage = len(parts) > 2 and parts[-1] in ("model", "adapter") and parts[-2] in STAGES
    name = f"{parts[-3]}-{parts[-2]}" if is_of_a_stage else parts[-1].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"
