"""Resolve every `auto` of a recipe, with the reason for each value."""

from dataclasses import dataclass
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
from dcr_ds.models.tensor_parallel import as_config
from dcr_ds.models.varlen import packed_attention
from dcr_ds.recipe import Recipe, StageSection

CPU_MICRO_BATCH = {"refine": 32, "align": 8}  # larger micro-batches are not faster on a CPU
ACTIVATIONS = 0.25  # share of a GPU's memory; the rest holds weights, gradients, optimizer states and logits

LAYER_SHARE = 0.8  # of the blocks: where the probe lands on the measured model
MEASURED_RATE, MEASURED_WIDTH = 2.5e-4, 576  # of refine on SmolLM2-135M (docs/training.md)
LORA_FACTOR = 10  # adapters take about ten times the learning rate of full-parameter training

Reasons = dict[str, str]  # by field of the recipe


@dataclass
class Values:
    """The fields of a recipe while each `auto` is replaced, and the reasons by field."""

    fields: dict[str, Any]
    reasons: Reasons

    def fill(self, section: str, field: str, value: Any, reason: str) -> None:
        """Replace a field that is `auto`; a reason "" is not reported."""
        if self.fields[section][field] == "auto":
            self.fields[section][field] = value
            self.reasons |= {f"{section}.{field}": reason} if reason else {}


def resolve(recipe: Recipe, model_config: dict, machine: Machine) -> tuple[Recipe, Reasons]:
    """Return the recipe without any `auto`, and why each became what it is.

    Args:
        model_config: the source model's config.json.

    Raises:
        UserError: the recipe asks for something that cannot work on this machine.
    """
    values = Values(recipe.model_dump(), {})
    _resolve_model(values, model_config, machine)
    blocks = model_config["num_hidden_layers"]
    layer = max(1, min(blocks - 1, round(LAYER_SHARE * blocks)))
    values.fill("refine", "layer", layer, f"{LAYER_SHARE} of the model's {blocks} blocks, without a layer probe")
    rate, reason = refine_learning_rate(widths(model_config)[0], recipe.refine.adapter == "lora")
    values.fill("refine", "learning_rate", rate, reason)
    if "evaluate" in recipe.stages:
        itemsize = DTYPES[values.fields["model"]["dtype"]].itemsize
        copies, reason = resolve_copies(recipe.evaluate, model_config, machine, itemsize)
        values.fill("evaluate", "ranks_per_copy", copies, reason)
    backend, reason = resolve_loss_backend(recipe.align.loss_backend, machine.liger)
    values.fill("align", "loss_backend", backend, reason)
    coefficient, reason = resolve_router_loss(recipe.align.router_aux_loss_coef, model_config, _unbalanced(recipe))
    values.fill("align", "router_aux_loss_coef", coefficient, reason if has_experts(model_config) else "")
    for name, layers in {"refine": values.fields["refine"]["layer"], "align": blocks}.items():
        token_bytes = activation_bytes(model_config, layers, recipe.model.activation_checkpointing)
        _resolve_batching(name, getattr(recipe, name), values, token_bytes, machine)
    config = read_config(recipe)
    zero, notes = resolve_partition(config.get("zero_optimization") or {}, machine.ranks, machine.nodes, machine.on_gpu)
    values.fields["deepspeed"] = config | ({"zero_optimization": zero} if zero else {})
    if notes:
        values.reasons["deepspeed"] = "; ".join(notes)
    return Recipe.model_validate(values.fields), values.reasons


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


def _resolve_model(values: Values, model_config: dict, machine: Machine) -> None:
    """Fill in dtype, attention and kernels."""
    model, model_type = values.fields["model"], model_config["model_type"]
    reason = "the GPU computes in bfloat16" if machine.bf16 else "no GPU that computes in bfloat16"
    values.fill("model", "dtype", "bfloat16" if machine.bf16 else "float32", reason)
    attention = resolve_attention(model["attention"], model_type, model["dtype"], machine.flash_attention)
    values.fill("model", "attention", *attention)
    values.fill("model", "kernels", *resolve_kernels(model["kernels"], model_type, machine.liger))


def _resolve_batching(name: str, stage: StageSection, values: Values, token_bytes: int, machine: Machine) -> None:
    """Fill in micro_batch and packed_length of one stage, and say how packed rows are kept apart.

    Args:
        token_bytes: activation memory per token.
    """
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
    share = -(-stage.global_batch // machine.ranks)
    values.fill(
        name, "micro_batch", min(share, largest), "" if stage.packing else f"{share} samples per rank; {reason}"
    )
    if machine.ranks > stage.global_batch:
        values.reasons[f"{name}.global_batch"] = f"{machine.ranks} ranks, the others get no sample in a step; raise it"
    values.fill(name, "packed_length", packed_length, packed_reason if stage.packing else "")
    if stage.packing:
        model = values.fields["model"]
        _, reason = packed_attention(model["attention"], model["dtype"], machine.varlen)
        values.reasons[f"{name}.packing"] = f"rows are kept apart by {reason}"


def activation_bytes(model_config: dict, layers: int, checkpointing: bool) -> int:
    """Estimate the activation memory per token that a forward pass keeps, in bfloat16 and without fused kernels.

    A block of width D and inner width F keeps 26 D + 8 F bytes: both norms in float32 and their outputs (12 D),
    queries, keys and values before and after rotation and the attention output (14 D), and four F-wide states of the
    MLP (in a mixture of experts, of each expert that a token uses). With checkpointing a block keeps only its input,
    and one block at a time is held in full.
    """
    width, inner = widths(model_config)
    block = 26 * width + 8 * inner * model_config.get("num_experts_per_tok", 1)
    return layers * 2 * width + block if checkpointing else layers * block


def widths(model_config: dict) -> tuple[int, int]:
    """Width of the hidden states, and of the states inside the MLP; of config.json, or the architecture's default."""
    is_complete = {"hidden_size", "intermediate_size"} <= model_config.keys()
    config = model_config if is_complete else as_config(model_config).to_dict()
    width = config["hidden_size"]
    return width, config.get("moe_intermediate_size") or config.get("intermediate_size") or 4 * width
