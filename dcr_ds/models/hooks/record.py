"""The files of a baseline folder: baseline.json, prompts.jsonl, vectors.safetensors of some, and the tokenizer.

baseline.json holds the name of the baseline, its source model and the hash of its content, the hash of the chat
template, the settings, and the data that they come from. Nothing here imports torch before it must write tensors.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcr_ds.errors import UserError, write_errors_as_user_errors
from dcr_ds.files import check_fields, hash_of, parse_json, write_json, write_jsonl
from dcr_ds.models.checkpoint_files import BASELINE_PROMPTS, BASELINE_RECORD, model_hash
from dcr_ds.new_folder import complete_folder
from dcr_ds.recipe import ChatTemplate

if TYPE_CHECKING:
    import torch

VECTORS = "vectors.safetensors"
FIELDS = ("baseline", "source", "content", "template", "settings", "data")


@dataclass(frozen=True)
class BaselineRecord:
    """The content of baseline.json.

    Attributes:
        baseline: name, such as knob.
        source: folder, hub id or name of the model that the hook is installed in.
        content: hash of the source model, and of an adapter on it.
        template: hash of the chat template that the settings and vectors were made with.
        settings: what the hook needs besides its vectors.
        data: source, number of rows and hash of each data set, by role.
    """

    baseline: str
    source: str
    content: str
    template: str
    settings: dict[str, Any]
    data: dict[str, dict[str, Any]]

    def check_source(self, folder: Path, source: Path, adapter: Path | None) -> None:
        """Raise UserError if the source model is another one than the baseline was made for."""
        if content_hash(source, adapter) != self.content:
            raise UserError(
                f"{folder}: the baseline was made for another model than the one that is now in {adapter or source} "
                "(its content has changed); make the baseline again, or set `source` in "
                f"{BASELINE_RECORD} to the model it was made for"
            )


def content_hash(source: Path, adapter: Path | None) -> str:
    """Hash of a model and of an adapter on it, by content."""
    return model_hash(source) + (f"+{model_hash(adapter)}" if adapter else "")


def hook_hash(folder: Path) -> str:
    """Hash of what a hook changes: settings and vectors, but not where the source model is."""
    record, vectors = read_record(folder), folder / VECTORS
    content = hashlib.sha256(vectors.read_bytes()).hexdigest() if vectors.is_file() else None
    return hash_of([record.baseline, record.template, record.settings, content])


def read_record(folder: Path) -> BaselineRecord:
    """Read baseline.json.

    Raises:
        UserError: it is damaged.
    """
    file = folder / BASELINE_RECORD
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); make the baseline again") from None
    check_fields(content, FIELDS, file)
    kinds = {"settings": dict, "data": dict}
    if wrong := [name for name in FIELDS if not isinstance(content[name], kinds.get(name, str))]:
        raise UserError(f"{file}: {wrong[0]} has the wrong type; make the baseline again")
    return BaselineRecord(**{name: content[name] for name in FIELDS})


def write_baseline(
    folder: Path,
    record: BaselineRecord,
    prompts: Sequence[dict[str, str]],
    vectors: "Mapping[str, torch.Tensor]",
    tokenizer: Path,
    template: ChatTemplate,
) -> None:
    """Write a baseline folder, which gets its name when it is complete.

    Args:
        prompts: the rows of prompts.jsonl.
        vectors: tensors by name; none: no file of vectors.
        tokenizer: the folder of the source's tokenizer, which is saved with the chat template in use.

    Raises:
        UserError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    from dcr_ds.models.tokenizer_files import keep_tokenizer

    with write_errors_as_user_errors(folder), complete_folder(folder) as partial:
        partial.mkdir()
        keep_tokenizer(tokenizer, template, partial)
        if vectors:
            save_file({name: vector.contiguous() for name, vector in vectors.items()}, partial / VECTORS)
        write_jsonl(partial / BASELINE_PROMPTS, prompts)
        write_json(partial / BASELINE_RECORD, json.loads(json.dumps(asdict(record))))
