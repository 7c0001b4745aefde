"""Resolve every `auto` of a recipe, once, with the reason for each."""

from dataclasses import dataclass
from typing import Any

import torch

from dcr_ds.engine.config import read_config
from dcr_ds.engine.optimizers import check_optimizer
from dcr_ds.models.four_bit import check_four_bit
from dcr_ds.models.likelihood import resolve_loss_backend
from dcr_ds.models.load import resolve_attention
from dcr_ds.recipe import Recipe

MICRO_BATCH = {"refine": 32, "align": 8}  # prompts are short; conversations carry logits of the whole vocabulary


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
    backend, reason = resolve_loss_backend(recipe.align.loss_backend, device)
    if recipe.align.loss_backend == "auto":
        values["align"]["loss_backend"] = backend
        reasons["align.loss_backend"] = reason
    for stage, most in MICRO_BATCH.items():
        if values[stage]["micro_batch"] == "auto":
            share = -(-values[stage]["global_batch"] // world_size)
            values[stage]["micro_batch"] = min(share, most)
            reasons[f"{stage}.micro_batch"] = f"a rank's share is {share}, at most {most} at a time"
    if recipe.model.quantize != "none":
        check_four_bit(model_config["model_type"], device)
    for stage in MICRO_BATCH:
        if stage in recipe.stages:
            check_optimizer(getattr(recipe, stage), f"{stage}.optimizer", device)
    values["deepspeed"] = read_config(recipe)
    resolved = Recipe.model_validate(values)
    return resolved, Settings(resolved.deepspeed, reasons)
