"""Check that a checkpoint holds the weights of its architecture, before it is trained, evaluated or exported.

Names and shapes in the safetensors headers are compared with the architecture of config.json, built on the meta device.
transformers would initialise missing weights at random and ignore others, with a warning at most. No weights are read,
except for the two tensors of a tied model that stores its head twice.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import no_init_weights

from dcr_ds.errors import UserError, one_line
from dcr_ds.files import read_json
from dcr_ds.models.checkpoint_files import BLOCK, BUFFER, HEAD, check_not_quantised, model_config, read_headers
from dcr_ds.models.limits import SPECIAL_IDS, ids_beyond, model_limits
from dcr_ds.models.rehearsal import PREFIX, check_architecture

ROWS_AT_ONCE = 8192


def check_model(folder: Path) -> list[str]:
    """Check config and tensors of a checkpoint against its architecture.

    Returns:
        Notes to print: an architecture that is not tested, parts that are not used (a second head), special tokens
        that are not in the vocabulary.

    Raises:
        UserError: it is quantised; a tensor is missing or of another shape; there are tensors that would change its
            results if they were used; config.json says that the head is tied to the input embeddings and the two
            differ; the pad token of config.json is not in the vocabulary; or its architecture is not tested, and a
            small model of it fails the checks.
    """
    check_not_quantised(folder)
    notes = [*filter(None, [check_architecture(folder)]), *_check_special_ids(folder)]
    stored = {name: tuple(entry["shape"]) for name, entry in read_headers(folder).items() if not BUFFER.search(name)}
    model = build_on_meta(folder)
    expected = expected_shapes(model)
    tied = dict(model.all_tied_weights_keys)
    _check_missing(folder, stored, expected)
    unused = _check_unknown(folder, [name for name in stored if name not in expected and name not in tied], model)
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
    if unused:
        notes.append(f"{folder}: the weights hold {_some(unused)} that are not part of the language model: not used")
    return notes


def build_on_meta(folder: Path) -> PreTrainedModel:
    """The causal language model of a checkpoint on the meta device: names, shapes and ties, no memory.

    Raises:
        UserError: transformers cannot build it from config.json.
    """
    try:
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
            )
            model.tie_weights()  # no_init_weights leaves it out; an untied head would be counted twice
    except Exception as error:  # what an inconsistent config raises depends on the field
        reason = one_line(error)
        raise UserError(
            f"{folder / 'config.json'}: transformers cannot build the model ({reason}); copy the model again"
        ) from None
    return model


def expected_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a checkpoint of the model holds, by name; tied weights are stored once."""
    tied = set(model.all_tied_weights_keys)
    weights = {name: weight for name, weight in model.state_dict().items() if name not in tied}
    return {name: tuple(weight.shape) for name, weight in revert_weight_conversion(model, weights).items()}


def _check_special_ids(folder: Path) -> list[str]:
    """Return notes on special tokens that are not in the vocabulary: generation cannot use them.

    Raises:
        UserError: config.json has such a pad token, with which no embedding can be built.
    """
    rows = model_limits(folder).rows
    notes = []
    for file in (folder / "config.json", folder / "generation_config.json"):
        values = read_json(file)
        for name in SPECIAL_IDS:
            beyond = ids_beyond(values.get(name), rows) if isinstance(values, dict) else []
            if not beyond:
                continue
            message = (
                f"{file}: {name} {beyond[0]} is not in the vocabulary, which ends at {(rows or 0) - 1} (vocab_size)"
            )
            if file.name == "config.json" and name == "pad_token_id":
                raise UserError(f"{message}; correct it, or add the token with resize_token_embeddings")
            notes.append(message)
    return notes


def _check_missing(folder: Path, stored: dict, expected: dict) -> None:
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
    _refuse_longer_names(folder, stored, missing)
    if missing == [HEAD]:
        raise UserError(
            f"{folder}: config.json says tie_word_embeddings: false, but the weights hold no {HEAD}, which would be "
            "random; set tie_word_embeddings to true if the head is tied, or copy the model again"
        )
    if missing:
        raise UserError(f"{folder}: the weights lack {_some(missing)}, which would be random; copy the model again")


def _refuse_longer_names(folder: Path, stored: dict, missing: list[str]) -> None:
    """Raise UserError if all missing tensors are there with one more prefix, that of a wrapper around the model."""
    longer = [name.removesuffix(missing[0]) for name in stored if missing and name.endswith(f".{missing[0]}")]
    for prefix in longer:
        if all(prefix + name in stored for name in missing):
            raise UserError(
                f"{folder}: the names of its tensors have the prefix {prefix!r} more ({prefix}{missing[0]}), that of "
                "a wrapper such as torch.compile, or of a model of text and images; save the model inside it"
            )


def _check_unknown(folder: Path, unknown: list[str], model: PreTrainedModel) -> list[str]:
    """Return the tensors that are not part of the language model: other heads, an encoder of images.

    Raises:
        UserError: one belongs to a module of the language model, such as a bias or a block more.
    """
    modules = {name for name, _ in model.named_children()}
    modules |= {name for name, _ in model.base_model.named_children()}  # without the prefix
    predicted = model_config(folder).get("num_nextn_predict_layers")
    blocks = model.config.num_hidden_layers
    extra_heads = range(blocks, blocks + (predicted if isinstance(predicted, int) else 0))

    def is_used(name: str) -> bool:
        block = BLOCK.search(name)
        return name.partition(".")[0] in modules and not (block and int(block[1]) in extra_heads)

    if used := [name for name in unknown if is_used(name)]:
        raise UserError(
            f"{folder}: the weights hold {_some(used)}, which the architecture in config.json does not have and "
            "transformers would ignore; correct config.json, or save the model again with transformers"
        )
    return unknown


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
