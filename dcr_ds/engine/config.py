"""Read the DeepSpeed configuration, check it against the recipe, and fill in its `auto` values.

`read_config` needs neither torch nor DeepSpeed, so errors are found before either is imported.
"""

import difflib
import json
from typing import Any

from dcr_ds.engine.zero3 import check_communication, resolve_overlap
from dcr_ds.errors import UserError
from dcr_ds.files import parse_json
from dcr_ds.recipe import (
    AlignSection,
    ModelSection,
    Recipe,
    RefineSection,
    StageSection,
    find_file,
    shipped_files,
)

DECIDED_BY_RECIPE = {
    "optimizer": "learning_rate and weight_decay of the stage",
    "scheduler": "warmup_steps and schedule of the stage",
    "train_batch_size": "global_batch of the stage",
    "gradient_accumulation_steps": "global_batch and micro_batch of the stage",
    "train_micro_batch_size_per_gpu": "micro_batch of the stage",
    "gradient_clipping": "max_grad_norm of the stage",
    "activation_checkpointing": "model.activation_checkpointing",
}
OFFLOADS = ("offload_optimizer", "offload_param")
ELSEWHERE = "offload_optimizer or offload_param, which replaced it"
# fields that DeepSpeed accepts and that must keep their default here: the default, and why or what to use
FIXED: dict[str, dict[str, tuple[Any, str]]] = {
    "zero_optimization": {
        "compute_grad_norm": (True, "gradients are clipped by their norm, and checked by it"),
        "load_from_fp32_weights": (True, "a resumed run would continue from rounded weights"),
        "elastic_checkpoint": (
            False,
            "its checkpoints cannot be loaded; others are converted for another number of ranks",
        ),
        "legacy_stage1": (False, "DeepSpeed has removed it"),
        "round_robin_gradients": (
            False,
            "a checkpoint that is exported or read by another number of ranks would exchange weights",
        ),
        "zenflow": (None, "it applies gradients late and in part"),
        "cpu_offload": (None, f"use {ELSEWHERE}"),
        "cpu_offload_param": (None, f"use {ELSEWHERE}"),
        "cpu_offload_use_pin_memory": (None, f"use {ELSEWHERE}"),
    },
    "bf16": {
        "check_grad_overflow": (True, "a gradient that is not finite would reach the weights"),
        "bf16_master_weights_and_grads": (False, "small updates of the weights would be rounded away"),
        "bf16_optimizer_states": (False, "small updates of the weights would be rounded away"),
    },
}
# these change rounding at most, or nothing
SHARDING = (
    "zero_optimization",
    "zero_force_ds_cpu_optimizer",
    "zero_allow_untested_optimizer",
    "wall_clock_breakdown",
    "flops_profiler",
    "comms_logger",
    "memory_breakdown",
    "dump_state",
    "steps_per_print",
    "aio",
)
SECTIONS = (*SHARDING, "bf16", "fp16", "communication_data_type", *DECIDED_BY_RECIPE)


def read_config(recipe: Recipe) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a recipe as a checked mapping.

    Raises:
        UserError: it cannot be read, sets what the recipe decides, or asks for something that is not supported.
    """
    if isinstance(recipe.deepspeed, dict):
        config, place = recipe.deepspeed, "deepspeed"
    else:
        config, place = _read_json(recipe.deepspeed), recipe.deepspeed
    _check_fields(config, place)
    zero = _section(config, "zero_optimization", place)
    _check_fixed(config, place)
    _check_precision(config, recipe.model.dtype, place)
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise UserError(f"{place}: zero_optimization.stage is {stage!r}; use 0, 1, 2 or 3")
    _check_offload(config, zero, place)
    _check_model(recipe.model, stage, place)
    for name in recipe.training_stages:
        _check_training(name, getattr(recipe, name), zero, place)
    check_communication(zero, recipe.model.quantize, place)
    return config


def _check_fields(config: dict[str, Any], place: str) -> None:
    """Refuse fields that the recipe decides, and those that are unknown."""
    for key, field in DECIDED_BY_RECIPE.items():
        if config.get(key, "auto") != "auto":
            raise UserError(f'{place}: {key} is set; the recipe decides it ({field}): remove it, or use "auto"')
    for key in config:
        if key not in SECTIONS:  # DeepSpeed ignores what it does not know; some of what it knows changes gradients
            near = difflib.get_close_matches(key, SECTIONS, n=1, cutoff=0.75)
            hint = f"did you mean {near[0]}?" if near else f"remove it; supported: {', '.join(SECTIONS)}"
            raise UserError(f"{place}: the field {key!r} is unknown, or not supported here; {hint}")


def _check_fixed(config: dict[str, Any], place: str) -> None:
    """Check the fields that must keep their defaults."""
    for name, fields in FIXED.items():
        section = _section(config, name, place)
        for field, (default, reason) in fields.items():
            if section.get(field, default) != default:
                raise UserError(f"{place}: {name}.{field} is {json.dumps(section[field])}: {reason}; remove it")


def _check_offload(config: dict[str, Any], zero: dict[str, Any], place: str) -> None:
    """Check offloading as far as it does not depend on the recipe."""
    stage = zero.get("stage", 0)
    for name in OFFLOADS:
        offload = _section(zero, name, place)
        if not offload:
            continue
        device = offload.get("device")
        if device not in ("cpu", "nvme"):
            raise UserError(f"{place}: {name}.device is {device!r}; use cpu or nvme, or remove {name}")
        if device == "nvme" and not offload.get("nvme_path"):
            raise UserError(f"{place}: {name}.device is nvme without nvme_path; set it to a folder on that drive")
    optimizer = zero.get("offload_optimizer") or {}
    for field, default in {"ratio": 1, "super_offload": False}.items():
        if optimizer.get(field, default) != default:
            raise UserError(
                f"{place}: offload_optimizer.{field} needs DeepSpeed's own optimizer for CPUs, which is not used here; "
                "remove it"
            )
    if stage < 2 and zero.get("offload_optimizer"):
        raise UserError(f"{place}: offload_optimizer needs ZeRO stage 2 or 3, not {stage}")
    if stage < 3 and zero.get("offload_param"):
        raise UserError(f"{place}: offload_param needs ZeRO stage 3, not {stage}")
    if config.get("zero_force_ds_cpu_optimizer") not in (None, False, "auto"):
        raise UserError(f"{place}: zero_force_ds_cpu_optimizer is on, and the optimizer is PyTorch's AdamW; remove it")


def _check_precision(config: dict[str, Any], dtype: str, place: str) -> None:
    """Check the precision against that of the recipe."""
    if _section(config, "fp16", place).get("enabled") not in (None, False, "auto"):
        raise UserError(f"{place}: fp16 is not supported; remove it and set model.dtype to bfloat16 or float32")
    if str(config.get("communication_data_type")).lower() == "fp16":
        raise UserError(f"{place}: communication_data_type is fp16, in which small gradients are 0; use bf16 or fp32")
    bf16 = _section(config, "bf16", place).get("enabled", "auto")
    if bf16 != "auto" and (dtype == "auto" or bf16 != (dtype == "bfloat16")):
        raise UserError(f'{place}: bf16.enabled is {bf16}, model.dtype is {dtype}; use "auto", and set model.dtype')


def _check_model(model: ModelSection, stage: int, place: str) -> None:
    """Check what a ZeRO stage does to the model."""
    if stage == 3 and model.quantize != "none" and not model.quantize_zero3:
        raise UserError(
            f"{place}: ZeRO-3 with model.quantize: {model.quantize}: every rank loads the whole 4-bit model before it "
            "is sharded, and gathers it at every step, to save little; use ds_configs/zero2.json, or set "
            "model.quantize_zero3: true to do it anyway"
        )
    if model.kernels == "compile" and (stage == 3 or model.quantize != "none"):
        reason = "ZeRO-3, which gathers parameters between the operations of a block" if stage == 3 else "4-bit weights"
        raise UserError(f"{place}: model.kernels: compile does not work with {reason}; use auto")


def _check_training(name: str, section: RefineSection | AlignSection, zero: dict[str, Any], place: str) -> None:
    """Check adapter and optimizer of a training stage."""
    if zero.get("stage") == 3 and section.adapter == "lora" and section.lora.dora:
        raise UserError(
            f"{place}: {name}.lora.dora reads whole weights, which ZeRO-3 has partitioned; use "
            f"ds_configs/zero2.json, or {name}.lora.dora: false"
        )
    if zero.get("offload_optimizer") and section.optimizer != "adamw":
        raise UserError(
            f"{place}: offload_optimizer runs the optimizer on the CPU, and {name}.optimizer: "
            f"{section.optimizer} is made for a GPU's memory; use adamw, or remove offload_optimizer"
        )


def _section(config: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    """Return a section of the configuration; empty if it is missing."""
    section = config.get(name)
    if section is not None and not isinstance(section, dict):
        raise UserError(f"{place}: {name} must be an object, this is {section!r}")
    return section or {}


def resolve_config(config: dict[str, Any], stage: StageSection, world_size: int, dtype: str, on_gpu: bool) -> dict:
    """Return the configuration of one stage with every `auto` filled in.

    DeepSpeed does not count micro-batches: `engine.step()` ends a step, however many backward passes it had.
    """
    resolved = {name: value for name, value in json.loads(json.dumps(config)).items() if value != "auto"}
    resolved.pop("fp16", None)  # "auto" in configurations written for other trainers; never on here
    resolved |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": stage.max_grad_norm,
        "bf16": {**(resolved.get("bf16") or {}), "enabled": dtype == "bfloat16"},
        "steps_per_print": 10**9,
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": stage.optimizer != "adamw",
        "zero_force_ds_cpu_optimizer": False,  # for the optimizer that is made here, also when it is offloaded
    }
    zero = resolved["zero_optimization"] = {"stage": 0} | (resolved.get("zero_optimization") or {})
    if zero["stage"] == 3 or "overlap_comm" in zero:  # DeepSpeed's default in stage 3 is on
        zero["overlap_comm"] = resolve_overlap(zero, world_size, on_gpu)
    for name in OFFLOADS:
        if (zero.get(name) or {}).get("pin_memory") == "auto":
            zero[name]["pin_memory"] = on_gpu
    return resolved


def _read_json(name: str) -> dict:
    path = find_file(name)
    if path is None:
        shipped = ", ".join(f"ds_configs/{file.name}" for file in shipped_files("ds_configs", ".json"))
        raise UserError(f"deepspeed: no such file {name!r}; shipped: {shipped}")
    try:
        config = parse_json(path.read_text(encoding="utf-8"), unique_keys=True)
    except UnicodeDecodeError:
        raise UserError(f"{name}: not UTF-8 text; a DeepSpeed configuration is a JSON file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{name}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{name}: a DeepSpeed configuration is a JSON object, this is a {type(config).__name__}")
    return config
