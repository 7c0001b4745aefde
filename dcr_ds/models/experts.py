"""Experts and routers of mixture-of-experts models, as transformers builds them.

The experts of a block are tensors [experts, …] of a module `experts`; its router is a module of its own.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

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


def freeze_routers(model: nn.Module) -> nn.Module:
    """Freeze the routers: without an auxiliary loss, training them would unbalance the load of the experts."""
    for name, weight in model.named_parameters():
        if ROUTER.search(name):
            weight.requires_grad_(False)
    return model
