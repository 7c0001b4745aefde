"""Resolve every `auto` of a recipe, once, with the reason for each."""

from dataclasses import dataclass
from typing import Any

import torch

from dcr_ds.engine.config import read_config
from dcr_ds.engine.optimizers import check_optimizer
from dcr_ds.models.four_bit import check_four_bit
from dcr_ds.models.fused import resolve_kernels
from dcr_ds.models.likelihood import resolve_loss_backend
from dcr_ds.models.load import resolve_attention
from dcr_ds.models.varlen import packed_attention
from dcr_ds.recipe import Recipe

CPU_MICRO_BATCH = {"refine": 32, "align": 8}  # more is no faster there
ACTIVATIONS = 0.25  # of a GPU's memory; the rest is for weights, gradients, the optimizer and the loss at the head


@dataclass(frozen=True)
class Settings:
    """What a run needs beside its recipe: the DeepSpeed configuration, and why each `auto` became what it is."""

    deepspeed: dict[str, Any]
    reasons: dict[str, str]


def resolve(recipe: Recipe, model_config: dict, device: torch.device, world_size: int) -> tuple[Recipe, Settings]:
    """The recipe without any `auto`, and the settings; the same on every rank.

    Raises:
        UserError: something asked for cannot work on this device.
    """
    reasons: dict[str, str] = {}
    blocks = model_config["num_hidden_layers"]
    values = recipe.model_dump()
    if recipe.refine.layer == "auto":
        values["refine"]["layer"] = blocks // 2
        reasons["refine.layer"] = f"half of the model's {blocks} blocks"
    if recipe.model.dtype == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        values["model"]["dtype"] = "bfloat16" if bf16 else "float32"
        reasons["model.dtype"] = "the GPU computes in bfloat16" if bf16 else "no GPU that computes in bfloat16"
    attention, reason = resolve_attention(
        recipe.model.attention, model_config["model_type"], values["model"]["dtype"], device
    )
    if recipe.model.attention == "auto":
        values["model"]["attention"] = attention
        reasons["model.attention"] = reason
    kernels, reason = resolve_kernels(recipe.model.kernels, model_config["model_type"], device)
    if recipe.model.kernels == "auto":
        values["model"]["kernels"] = kernels
        reasons["model.kernels"] = reason
    backend, reason = resolve_loss_backend(recipe.align.loss_backend, device)
    if recipe.align.loss_backend == "auto":
        values["align"]["loss_backend"] = backend
        reasons["align.loss_backend"] = reason
    if recipe.model.quantize != "none":
        check_four_bit(model_config["model_type"], device)
    for stage in CPU_MICRO_BATCH:
        if stage in recipe.stages:
            check_optimizer(getattr(recipe, stage), f"{stage}.optimizer", device)
    for stage, layers in {"refine": values["refine"]["layer"], "align": blocks}.items():
        longest = getattr(recipe, stage).longest_sample
        _resolve_batching(stage, values, model_config, layers, longest, device, world_size, reasons)
    values["deepspeed"] = config = read_config(recipe)
    return Recipe.model_validate(values), Settings(config, reasons)


def _resolve_batching(
    name: str,
    values: dict[str, Any],
    model_config: dict,
    layers: int,
    longest: int,
    device: torch.device,
    world_size: int,
    reasons: dict[str, str],
) -> None:
    """Fill in a stage's micro_batch and packed_length where they are `auto`."""
    stage, checkpointing = values[name], values["model"]["activation_checkpointing"]
    share = -(-stage["global_batch"] // world_size)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        tokens = int(ACTIVATIONS * memory / activation_bytes(model_config, layers, checkpointing))
        most, why = max(1, tokens // longest), f"activations of {tokens} tokens are a quarter of the GPU's memory"
        packed_length = max(longest, tokens // 1024 * 1024)
    else:
        most = CPU_MICRO_BATCH[name] * stage["max_length"] // longest
        why = f"at most {most} at a time on a CPU"
        packed_length = longest
    if stage["micro_batch"] == "auto":
        stage["micro_batch"] = min(share, most)
        if not stage["packing"]:
            reasons[f"{name}.micro_batch"] = f"a rank's share is {share}; {why}"
    if stage["packed_length"] == "auto":
        stage["packed_length"] = packed_length
        if stage["packing"]:
            reasons[f"{name}.packed_length"] = (
                why if device.type == "cuda" else "the longest sample, as short as may be"
            )
    if stage["packing"]:
        _, how = packed_attention(values["model"]["attention"], values["model"]["dtype"], device)
        reasons[f"{name}.packing"] = f"rows are kept apart by {how}"


def activation_bytes(model_config: dict, layers: int, checkpointing: bool) -> int:
    """What a forward pass keeps for its backward pass a token, about, in bfloat16 and without fused kernels.

    A block of width D and inner width F keeps 26 D + 8 F bytes: both norms in float32 and their outputs (12 D),
    queries, keys and values before and after rotation and what attention gives (14 D), and four F-wide states of the
    MLP (of a mixture, its experts for a token). Checkpointed, a block keeps its input, and one is alive in full.
    """
    width = model_config["hidden_size"]
    inner = model_config.get("moe_intermediate_size") or model_config["intermediate_size"]
    block = 26 * width + 8 * inner * model_config.get("num_experts_per_tok", 1)
    return layers * 2 * width + block if checkpointing else layers * block
