"""Check that a checkpoint holds exactly the weights of its architecture, before anything is trained.

Names and shapes in the safetensors headers are compared with the architecture of config.json, built on the meta device.
transformers would initialise missing weights at random and ignore others, with a warning at most. No weights are read,
except for the two tensors of a tied model that stores its head twice.
"""

import re
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import no_init_weights

from dcr_ds.errors import UserError
from dcr_ds.models.checkpoint_files import check_not_quantised, read_headers
from dcr_ds.models.trunk import HEAD

PREFIX = "model."  # of the base model's weights in a causal language model
IGNORED = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)$")  # buffers that old checkpoints store
ROWS_AT_ONCE = 8192


def check_model(folder: Path) -> None:
    """Check config and tensors of a checkpoint against its architecture.

    Raises:
        UserError: it is quantised; a tensor is missing, unknown or of another shape; or config.json says that the head
            is tied to the input embeddings and the two differ.
    """
    check_not_quantised(folder)
    stored = {name: tuple(entry["shape"]) for name, entry in read_headers(folder).items()}
    model = build_on_meta(folder)
    expected = expected_shapes(model)
    tied = dict(model.all_tied_weights_keys)
    _check_names(folder, stored, expected, set(tied))
    for name, shape in expected.items():
        if stored[name] != shape:
            raise UserError(
                f"{folder}: {name} has shape {list(stored[name])}, config.json requires {list(shape)}; one of them "
                "belongs to another model: copy the model again"
            )
    for name, source in tied.items():
        if name in stored and not _equal(folder, name, source):
            raise UserError(
                f"{folder}: config.json says tie_word_embeddings: true, but the weights hold a {name} that differs "
                f"from {source}; set tie_word_embeddings to false in config.json, or remove {name} from the weights"
            )


def build_on_meta(folder: Path) -> PreTrainedModel:
    """The causal language model of a checkpoint on the meta device: names and shapes, no memory.

    Raises:
        UserError: transformers cannot build it from config.json.
    """
    try:
        with torch.device("meta"), no_init_weights():
            return AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
            )
    except Exception as error:  # what an inconsistent config raises depends on the field
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / 'config.json'}: transformers cannot build the model ({reason}); copy the model again"
        ) from None


def expected_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a checkpoint of the model holds, by name; tied weights are stored once."""
    tied = set(model.all_tied_weights_keys)
    weights = {name: weight for name, weight in model.state_dict().items() if name not in tied}
    return {name: tuple(weight.shape) for name, weight in revert_weight_conversion(model, weights).items()}


def _check_names(folder: Path, stored: dict, expected: dict, tied: set[str]) -> None:
    missing = [name for name in expected if name not in stored]
    bare = [name.removeprefix(PREFIX) for name in missing if name.startswith(PREFIX)]
    if bare and all(name in stored for name in bare):
        remedy = (
            f"there is no {HEAD} either: use the whole model, not its base"
            if HEAD in missing
            else "load it with AutoModelForCausalLM and save it again"
        )
        raise UserError(
            f"{folder}: the names of its tensors lack the prefix {PREFIX!r} ({bare[0]} instead of {PREFIX}{bare[0]}), "
            f"as a base model without a head is saved; {remedy}"
        )
    if missing == [HEAD]:
        raise UserError(
            f"{folder}: config.json says tie_word_embeddings: false, but the weights hold no {HEAD}, which would be "
            "random; set tie_word_embeddings to true if the head is tied, or copy the model again"
        )
    if missing:
        raise UserError(f"{folder}: the weights lack {_some(missing)}, which would be random; copy the model again")
    unknown = [name for name in stored if name not in expected and name not in tied and not IGNORED.search(name)]
    if unknown:
        raise UserError(
            f"{folder}: the weights hold {_some(unknown)}, which the architecture in config.json does not have and "
            "transformers would ignore; correct config.json, or save the model again with transformers"
        )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def _equal(folder: Path, name: str, other: str) -> bool:
    """Whether two tensors of a checkpoint are equal; read in slices."""
    files = {key: entry["file"] for key, entry in read_headers(folder).items() if key in (name, other)}
    with safe_open(files[name], "pt") as first, safe_open(files[other], "pt") as second:
        a, b = first.get_slice(name), second.get_slice(other)
        if a.get_shape() != b.get_shape():
            return False
        starts = range(0, a.get_shape()[0], ROWS_AT_ONCE)
        return all(torch.equal(a[i : i + ROWS_AT_ONCE], b[i : i + ROWS_AT_ONCE]) for i in starts)
