"""The trunk: a model cut after block ℓ, and the way back into the whole checkpoint.

Stage 1 trains blocks 1…ℓ and reads h, the output of block ℓ (`hidden_states[ℓ]` in transformers, 1 ≤ ℓ < L, before any
final norm). The tail (blocks above ℓ, final norm, head, and input embeddings tied to the head) is frozen and never
loaded: the trunk has ℓ blocks, and `splice` writes the trained tensors into a copy of the source checkpoint.
"""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from dcr_ds.files import parse_json, write_json
from dcr_ds.models.checkpoint_files import FILES, INDEX, check_layer, copied_files, read_headers, weight_files
from dcr_ds.models.four_bit import finish_four_bit, loading_options
from dcr_ds.progress import heartbeat

HEAD = "lm_head.weight"
DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop")


def trunk_config(folder: Path, layer: int) -> PreTrainedConfig:
    """The config of the trunk: ℓ blocks, and no dropout, since the forward pass may run twice per step.

    Raises:
        UserError: `layer` is not in 1 … L − 1.
    """
    check_layer(folder, layer)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config, "layer_types", None):  # one entry per block: sliding or full attention
        config.layer_types = config.layer_types[:layer]
    config.num_hidden_layers = layer
    config.use_cache = False
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return config


def load_trunk(
    folder: Path,
    layer: int,
    dtype: torch.dtype,
    attention: str,
    quantize: str = "none",
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load blocks 1…ℓ and the input embeddings; `model(...).last_hidden_state` is h [B, T, D].

    Under ZeRO-3 (a live HfDeepSpeedConfig) transformers partitions the parameters as it loads them.

    Args:
        quantize: `nf4` loads the linear layers in 4 bits; those of the tail are not read.
        device: where a quantised trunk is loaded; without quantisation it is not moved.
    """
    config = trunk_config(folder, layer)
    options = loading_options(quantize, dtype, device)
    trunk = AutoModel.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention, **options, trust_remote_code=False
    )
    return freeze_tail(trunk if quantize == "none" else finish_four_bit(trunk))


def freeze_tail(trunk: PreTrainedModel) -> PreTrainedModel:
    """Drop the final norm, and freeze input embeddings that are tied to the head: they belong to the tail."""
    trunk.norm = torch.nn.Identity()
    if trunk.config.tie_word_embeddings:
        trunk.get_input_embeddings().weight.requires_grad_(False)
    return trunk


def splice(
    model: PreTrainedModel, trained: dict[str, torch.Tensor], source: Path, target: Path, prefix: str = ""
) -> None:
    """Write a copy of the source checkpoint with a model's trained tensors in it. Rank 0.

    Written shard by shard, in the dtypes and file layout of the source, into a temporary folder that is renamed at the
    end. Every other tensor keeps its bytes; the result is read back and verified. A tied head that the source stores a
    second time is left out: next to changed embeddings, transformers would load the two untied.

    Args:
        model: the trunk, or a whole model.
        trained: its trainable parameters by name, not partitioned, on the CPU.
        prefix: prefix of the model's parameter names in the source: "model." for a trunk, none for a whole model.

    Raises:
        RuntimeError: the source has no tensor for a trained one, or the file read back differs.
    """
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in copied_files(source, FILES[1:]):
        shutil.copy(file, partial)
    replaced = _in_source_format(model, trained, prefix)
    names = set(read_headers(source))
    kept = names - {HEAD} if model.config.tie_word_embeddings else names
    if left := set(replaced) - kept:
        raise RuntimeError(f"{source} has no tensor for {sorted(left)[:3]}")
    for shard in weight_files(source):
        _write_shard(shard, partial / shard.name, replaced, kept)
    if kept != names and (partial / INDEX).is_file():
        _write_index(source / INDEX, partial / INDEX, kept)
    for shard in weight_files(partial):
        _verify_shard(source / shard.name, shard, replaced, kept)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _in_source_format(model: PreTrainedModel, trained: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Trained tensors by their names in a checkpoint; what transformers fused while loading (MoE experts) is split."""
    tensors = {name: tensor for name, tensor in trained.items() if name not in model.all_tied_weights_keys}
    return {prefix + name: tensor for name, tensor in revert_weight_conversion(model, tensors).items()}


def _write_shard(source: Path, target: Path, replaced: dict[str, torch.Tensor], kept: set[str]) -> None:
    """Write the kept tensors of a shard, if there are any."""
    heartbeat(f"writing {target}")
    with safe_open(source, "pt") as stream:
        metadata = stream.metadata()
        tensors = {name: stream.get_tensor(name) for name in stream.keys() if name in kept}
    for name in set(tensors) & set(replaced):
        if replaced[name].shape != tensors[name].shape:
            raise RuntimeError(f"{name}: {tuple(replaced[name].shape)}, the source has {tuple(tensors[name].shape)}")
        tensors[name] = replaced[name].to(tensors[name].dtype).contiguous()
    if tensors:
        save_file(tensors, target, metadata=metadata)


def _write_index(source: Path, target: Path, kept: set[str]) -> None:
    """Write the index of the kept tensors, with their size."""
    index = parse_json(source.read_bytes())
    index["weight_map"] = {name: shard for name, shard in index["weight_map"].items() if name in kept}
    offsets = (entry["data_offsets"] for name, entry in read_headers(source.parent).items() if name in kept)
    index["metadata"] = {**(index.get("metadata") or {}), "total_size": sum(end - begin for begin, end in offsets)}
    write_json(target, index)


def _verify_shard(source: Path, target: Path, replaced: dict[str, torch.Tensor], kept: set[str]) -> None:
    heartbeat(f"verifying {target}")
    with safe_open(source, "pt") as before, safe_open(target, "pt") as after:
        if set(before.keys()) & kept != set(after.keys()):
            raise RuntimeError(f"{target}: has other tensors than {source} when read back")
        for name in after.keys():
            old, new = before.get_tensor(name), after.get_tensor(name)
            expected = replaced[name].to(old.dtype) if name in replaced else old
            if new.dtype != old.dtype or not _same_bytes(new, expected):
                raise RuntimeError(f"{target}: {name} read back differs from what was written")


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
