"""Resolve every `auto` of a recipe, with the reason for each value."""

from typing import Any

import torch

from dcr_ds.engine.config import read_config
from dcr_ds.engine.copies import resolve_copies
from dcr_ds.engine.machine import Machine
from dcr_ds.engine.optimizers import check_optimizer
from dcr_ds.engine.zero3 import resolve_partition
from dcr_ds.errors import UserError
from dcr_ds.models.experts import has_experts, resolve_router_loss
from dcr_ds.models.four_bit import check_four_bit
from dcr_ds.models.fused import check_compiler, resolve_kernels
from dcr_ds.models.likelihood import resolve_loss_backend
from dcr_ds.models.load import DTYPES, resolve_attention
from dcr_ds.models.varlen import packed_attention
from dcr_ds.recipe import Recipe, StageSection

CPU_MICRO_BATCH = {"refine": 32, "align": 8}  # larger micro-batches are not faster on a CPU
ACTIVATIONS = 0.25  # share of a GPU's memory; the rest holds weights, gradients, optimizer states and logits

LAYER_SHARE = 0.8  # of the blocks: where the probe lands on the measured model
MEASURED_RATE, MEASURED_WIDTH = 2.5e-4, 576  # of refine on SmolLM2-135M (docs/training.md)
LORA_FACTOR = 10  # adapters take about ten times the learning rate of full-parameter training

Reasons = dict[str, str]  # by field of the recipe


def resolve(recipe: Recipe, model_config: dict, machine: Machine) -> tuple[Recipe, Reasons]:
    """Return the recipe without any `auto`, and why each became what it is.

    Args:
        model_config: the source model's config.json.

    Raises:
        UserError: the recipe asks for something that cannot work on this machine.
    """
    values = recipe.model_dump()
    reasons = _resolve_model(values, model_config, machine)
    blocks = model_config["num_hidden_layers"]
    if recipe.refine.layer == "auto":
        values["refine"]["layer"] = max(1, min(blocks - 1, round(LAYER_SHARE * blocks)))
        reasons["refine.layer"] = f"{LAYER_SHARE} of the model's {blocks} blocks, without a layer probe"
    if recipe.refine.learning_rate == "auto":
        rate, reason = refine_learning_rate(model_config["hidden_size"], recipe.refine.adapter == "lora")
        values["refine"]["learning_rate"], reasons["refine.learning_rate"] = rate, reason
    if "evaluate" in recipe.stages:
        itemsize = DTYPES[values["model"]["dtype"]].itemsize
        copies, reason = resolve_copies(recipe.evaluate, model_config, machine, itemsize)
        if recipe.evaluate.ranks_per_copy == "auto":
            values["evaluate"]["ranks_per_copy"] = copies
            reasons["evaluate.ranks_per_copy"] = reason
    backend, reason = resolve_loss_backend(recipe.align.loss_backend, machine.liger)
    if recipe.align.loss_backend == "auto":
        values["align"]["loss_backend"] = backend
        reasons["align.loss_backend"] = reason
    coefficient, reason = resolve_router_loss(recipe.align.router_aux_loss_coef, model_config, _unbalanced(recipe))
    if recipe.align.router_aux_loss_coef == "auto":
        values["align"]["router_aux_loss_coef"] = coefficient
        if has_experts(model_config):
            reasons["align.router_aux_loss_coef"] = reason
    checkpointing = recipe.model.activation_checkpointing
    for name, layers in {"refine": values["refine"]["layer"], "align": blocks}.items():
        token_bytes = activation_bytes(model_config, layers, checkpointing)
        reasons |= _resolve_batching(name, getattr(recipe, name), values[name], token_bytes, machine)
        if values[name]["packing"]:
            _, reason = packed_attention(values["model"]["attention"], values["model"]["dtype"], machine.varlen)
            reasons[f"{name}.packing"] = f"rows are kept apart by {reason}"
    config = read_config(recipe)
    zero, notes = resolve_partition(config.get("zero_optimization") or {}, machine.ranks, machine.nodes, machine.on_gpu)
    values["deepspeed"] = config | ({"zero_optimization": zero} if zero else {})
    if notes:
        reasons["deepspeed"] = "; ".join(notes)
    return Recipe.model_validate(values), reasons


def refine_learning_rate(hidden_size: int, lora: bool) -> tuple[float, str]:
    """The learning rate of stage 1 and the reason: the measured one, scaled by 1 / width for wider models."""
    rate = MEASURED_RATE * min(1.0, MEASURED_WIDTH / hidden_size) * (LORA_FACTOR if lora else 1)
    reason = f"{MEASURED_RATE:g}, measured at hidden size {MEASURED_WIDTH}, scaled by {MEASURED_WIDTH} / {hidden_size}"
    if hidden_size <= MEASURED_WIDTH:
        reason = f"as measured at hidden size {MEASURED_WIDTH}"
    return float(f"{rate:.2g}"), reason + (f"; times {LORA_FACTOR} for LoRA" if lora else "")


def check_device(recipe: Recipe, model_config: dict, device: torch.device) -> None:
    """Raise UserError unless this device can run the optimizers and the quantisation of a recipe; both are tried."""
    if recipe.model.quantize != "none":
        check_four_bit(device)
        if has_experts(model_config) and not recipe.model.activation_checkpointing:
            raise UserError(
                f"model.activation_checkpointing: set it to true with model.quantize: {recipe.model.quantize} and a "
                "mixture of experts: without it the forward pass keeps the experts of all blocks, dequantised"
            )
    if recipe.model.kernels == "compile":
        check_compiler()
    if "refine" in recipe.stages and recipe.refine.backend == "triton" and device.type != "cuda":
        raise UserError("refine.backend: triton needs a GPU; use auto or chunked")
    for stage in recipe.training_stages:
        check_optimizer(getattr(recipe, stage), f"{stage}.optimizer", device)


def _unbalanced(recipe: Recipe) -> str:
    """Why the routers cannot have a load-balancing loss in stage 2; "" if they can."""
    if recipe.model.freeze_router or recipe.align.adapter != "none":
        return "the routers are frozen; model.freeze_router: false with align.adapter: none trains them"
    if recipe.model.kernels == "compile":
        return "router logits cannot be recorded with model.kernels: compile"
    return ""


def _resolve_model(values: dict[str, Any], model_config: dict, machine: Machine) -> Reasons:
    """Fill in dtype, attention and kernels of `values`."""
    model, model_type = values["model"], model_config["model_type"]
    reasons = {}
    if model["dtype"] == "auto":
        model["dtype"] = "bfloat16" if machine.bf16 else "float32"
        reasons["model.dtype"] = "the GPU computes in bfloat16" if machine.bf16 else "no GPU that computes in bfloat16"
    attention = resolve_attention(model["attention"], model_type, model["dtype"], machine.flash_attention)
    kernels = resolve_kernels(model["kernels"], model_type, machine.liger)
    for field, (value, reason) in {"attention": attention, "kernels": kernels}.items():
        if model[field] == "auto":
            model[field], reasons[f"model.{field}"] = value, reason
    return reasons


def _resolve_batching(
    name: str, stage: StageSection, values: dict[str, Any], token_bytes: int, machine: Machine
) -> Reasons:
    """Fill in micro_batch and packed_length of one stage in `values`.

    Args:
        token_bytes: activation memory per token.
    """
    reasons = {}
    longest = stage.longest_sample
    if machine.on_gpu:
        tokens = int(ACTIVATIONS * machine.memory_bytes / token_bytes)
        largest = max(1, tokens // longest)
        reason = f"activations of {tokens} tokens take a quarter of the GPU's memory"
        packed_length, packed_reason = max(longest, tokens // 1024 * 1024), reason
    else:
        largest = CPU_MICRO_BATCH[name] * stage.max_length // longest
        reason = f"at most {largest} per micro-batch on a CPU"
        packed_length, packed_reason = longest, "the longest sample; a CPU gains nothing from longer rows"
    if values["micro_batch"] == "auto":
        share = -(-stage.global_batch // machine.ranks)
        values["micro_batch"] = min(share, largest)
        if not stage.packing:
            reasons[f"{name}.micro_batch"] = f"{share} samples per rank; {reason}"
    if values["packed_length"] == "auto":
        values["packed_length"] = packed_length
        if stage.packing:
            reasons[f"{name}.packed_length"] = packed_reason
    return reasons


def activation_bytes(model_config: dict, layers: int, checkpointing: bool) -> int:
    """Estimate the activation memory per token that a forward pass keeps, in bfloat16 and without fused kernels.

    A block of width D and inner width F keeps 26 D + 8 F bytes: both norms in float32 and their outputs (12 D),
    queries, keys and values before and after rotation and the attention output (14 D), and four F-wide states of the
    MLP (in a mixture of experts, of each expert that a token uses). With checkpointing a block keeps only its input,
    and one block at a time is held in full.
    """
    width = model_config["hidden_size"]
    inner = model_config.get("moe_intermediate_size") or model_config["intermediate_size"]
    block = 26 * width + 8 * inner * model_config.get("num_experts_per_tok", 1)
    return layers * 2 * width + block if checkpointing else layers * block
