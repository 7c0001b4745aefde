"""Experts and routers of mixture-of-experts models, as transformers builds them.

The experts of a block are tensors [experts, …] of a module `experts`; its router is a module of its own.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import nn

from dcr_ds.errors import UserError

NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts")  # in a config, by architecture
ROUTER = re.compile(r"(^|\.)layers\.\d+\..*\b(gate|router|shared_expert_gate)\.")  # in the name of a weight


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether config.json is that of a mixture of experts."""
    return any(config.get(name) for name in NUMBERS)


def expert_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The weights of the experts, in 4 bits or not: name of the module, the module, and name of the tensor in it."""
    for place, module in model.named_modules():
        if place.rpartition(".")[2] == "experts":
            quantised = getattr(module, "parametrizations", {})
            plain = [name for name, weight in module.named_parameters(recurse=False) if weight.dim() == 3]
            yield from ((place, module, name) for name in (*quantised, *plain))


def freeze_routers(model: nn.Module) -> None:
    """Freeze the routers: without an auxiliary loss, training them would unbalance the load of the experts."""
    for name, weight in model.named_parameters():
        if ROUTER.search(name):
            weight.requires_grad_(False)


def resolve_router_loss(setting: float | Literal["auto"], config: Mapping[str, Any], problem: str) -> tuple[float, str]:
    """The coefficient of the load-balancing loss of the routers, and a short reason.

    Args:
        setting: of the recipe; auto: the coefficient in config.json, or 0 if there is none or there is a problem.
        config: config.json of the model.
        problem: why the loss cannot be used in this run; "" if it can.

    Raises:
        UserError: a coefficient above 0 is asked for, and the loss cannot be used.
    """
    field, own = "align.router_aux_loss_coef", config.get("router_aux_loss_coef")
    if not has_experts(config) or not isinstance(own, int | float):
        own = 0
        problem = f"{config['model_type']} has no router_aux_loss_coef in its config.json: no routers, or no such loss"
    if setting == "auto":
        return (0.0, problem) if problem else (float(own), "router_aux_loss_coef of config.json")
    if setting and problem:
        raise UserError(f"{field}: {setting:g} cannot be used: {problem}; set it to 0 or auto")
    return setting, "as asked"
