"""Write a copy of a checkpoint in which a baseline has changed some weights, one weight at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dcr_ds.errors import write_errors_as_user_errors
from dcr_ds.files import without_nan, write_json, write_jsonl
from dcr_ds.models.check import build_on_meta, check_model
from dcr_ds.models.checkpoint_files import BASELINE_PROMPTS, BASELINE_RECORD, read_headers
from dcr_ds.models.hashes import weights_hash
from dcr_ds.models.splice import ALONE, splice
from dcr_ds.models.tokenizer_files import keep_tokenizer
from dcr_ds.new_folder import complete_folder
from dcr_ds.recipe import ChatTemplate

Edit = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Edited:
    """What a baseline changes.

    Attributes:
        edits: the changed weights by name, each with the function from the old weight to the new one. The function
            gets the weight in float32 or float64; the result is stored in the dtype of the checkpoint.
        figures: of the selection, for baseline.json.
        unties_head: input embeddings change and the head must not: a tied head is stored apart.
    """

    edits: Mapping[str, Edit]
    figures: dict[str, Any]
    unties_head: bool = False


class EditedWeights:
    """The weights of a checkpoint that a baseline changes, changed when they are read."""

    processes = ALONE

    def __init__(self, source: Path, edits: Mapping[str, Edit]):
        self._edits, self._stored = edits, read_headers(source)
        self.shapes: Mapping[str, Sequence[int]] = {name: tuple(self._stored[name]["shape"]) for name in edits}

    def read(self, name: str, wanted: bool) -> torch.Tensor | None:
        """A changed weight, in float32 or float64."""
        if not wanted:
            return None
        with safe_open(self._stored[name]["file"], "pt") as stream:
            weight = stream.get_tensor(name)
        return self._edits[name](weight.to(torch.promote_types(weight.dtype, torch.float32)))


def write_edited(
    source: Path,
    edited: Edited,
    record: dict[str, Any],
    prompts: Sequence[dict[str, str]],
    out: Path,
    template: ChatTemplate,
) -> None:
    """Write a plain model folder: the source with changed weights, its tokenizer, baseline.json and prompts.jsonl.

    In the dtypes of the source. The folder gets its name when it is complete and checked.

    Args:
        record: what made it, for baseline.json.
        prompts: the rows of prompts.jsonl.
        out: a folder that does not exist, or is empty.
        template: the chat template that prompts were rendered with.

    Raises:
        UserError: the folder cannot be written.
    """
    with write_errors_as_user_errors(out), complete_folder(out) as partial:
        splice(build_on_meta(source), EditedWeights(source, edited.edits), source, partial, untie=edited.unties_head)
        keep_tokenizer(source, template, partial)
        check_model(partial)
        hashes = {"source_sha256": weights_hash(source), "sha256": weights_hash(partial)}
        changed = {"changed": sorted(edited.edits)}
        write_jsonl(partial / BASELINE_PROMPTS, prompts)
        write_json(partial / BASELINE_RECORD, record | {"selection": without_nan(edited.figures)} | hashes | changed)
