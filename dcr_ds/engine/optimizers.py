"""Optimizers, torch's AdamW and those of bitsandbytes with 8-bit or pageable state; schedules of the learning rate."""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from dcr_ds.engine.weights import full_shape
from dcr_ds.errors import UserError, one_line
from dcr_ds.models.four_bit import EXTRA, import_bitsandbytes
from dcr_ds.recipe import StageSection

FROM_BITSANDBYTES = {
    "adamw8bit": "AdamW8bit",
    "paged_adamw8bit": "PagedAdamW8bit",
    "paged_adamw32bit": "PagedAdamW32bit",
}
PROBE_SIZE = 4096  # elements; bitsandbytes keeps the state of smaller tensors in 32 bits


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[Any]:
    """The trainable parameters of a model for an optimizer: with weight decay in two groups, the second without it.

    Norms, biases and embeddings do not decay, nor an adapter on embeddings; one that is tied to the head counts as an
    embedding. Without weight decay there is one group, as checkpoints of older versions have it.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not weight_decay:
        return [parameter for _, parameter in trained]
    embeddings = {
        id(weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for weight in module.parameters(recurse=False)
    }

    def decays(name: str, parameter: torch.nn.Parameter) -> bool:
        # the biases of several experts are one tensor
        is_matrix = len(full_shape(parameter)) > 1 and not name.endswith("bias")
        return is_matrix and id(parameter) not in embeddings and "lora_embedding_" not in name

    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in trained:
        (decayed if decays(name, parameter) else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]  # DeepSpeed fails on an empty one


def build_optimizer(parameters: list[Any], stage: StageSection) -> torch.optim.Optimizer:
    """AdamW over parameters or groups of them, with the stage's learning rate and weight decay.

    torch's AdamW rather than DeepSpeed's, which needs a compiler. It is fused on CPUs, too, where states may be
    offloaded: one pass over the memory, and no copies of the states (see optimizer_step.py in benchmarks).
    """
    assert stage.learning_rate != "auto"  # resolved
    options: dict[str, Any] = {"lr": stage.learning_rate, "weight_decay": stage.weight_decay}
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    bitsandbytes = import_bitsandbytes("optimizer")
    return getattr(bitsandbytes.optim, FROM_BITSANDBYTES[stage.optimizer])(parameters, **options)


def build_schedule(name: str, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """The schedules of transformers, whose module also imports peft and bitsandbytes and so takes seconds.

    Args:
        name: after the linear warm-up: `constant`, `linear` (to 0 at the last step) or `cosine` (half a period, to 0).
    """
    decay_steps = max(1, total_steps - warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if name == "linear":
            return max(0.0, (total_steps - step) / decay_steps)
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / decay_steps)) if name == "cosine" else 1.0

    return LambdaLR(optimizer, factor)


def check_optimizer(stage: StageSection, field: str, device: torch.device) -> None:
    """Raise UserError unless the optimizer can run on this device; a step on a probe tensor is tried."""
    if stage.optimizer == "adamw":
        return
    import_bitsandbytes(field)
    try:
        parameter = torch.nn.Parameter(torch.zeros(PROBE_SIZE, device=device))
        parameter.grad = torch.ones_like(parameter)
        build_optimizer([parameter], stage).step()
    except Exception as error:  # the error of a missing library depends on the device
        raise UserError(
            f"{field}: {stage.optimizer} of bitsandbytes cannot run on {device} "
            f"({one_line(error)}); install a build of it for this device ({EXTRA}), or use adamw"
        ) from None
