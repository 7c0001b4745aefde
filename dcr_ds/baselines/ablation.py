"""Directional ablation: remove one direction ô from everything that is written to the residual stream.

By hooks x ← x − (x·ô) ô on the input of each block and on the outputs of its attention and MLP, or as an equal change
of weights. The head is not touched.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from dcr_ds.baselines.edits import Edit
from dcr_ds.baselines.projections import OUTPUTS, blocks_of, linears
from dcr_ds.models.hooks.states import hidden_of, with_hidden


@contextmanager
def ablated(model: PreTrainedModel, direction: torch.Tensor) -> Iterator[None]:
    """While entered, the model runs without a direction [D] of length 1."""
    held: dict[tuple, torch.Tensor] = {}

    def without(states: torch.Tensor) -> torch.Tensor:
        key = states.device, states.dtype
        if key not in held:
            held[key] = direction.to(*key)
        return remove_from_rows(states, held[key])

    def before(_block, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if arguments:
            return (without(arguments[0]), *arguments[1:]), options
        return arguments, options | {"hidden_states": without(options["hidden_states"])}

    def after(_module, _inputs, output: Any) -> Any:
        return with_hidden(output, without(hidden_of(output)))

    with ExitStack() as hooks:
        for block in blocks_of(model).values():
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            for path in OUTPUTS:
                module = block.get_submodule(path.partition(".")[0])
                hooks.callback(module.register_forward_hook(after).remove)
        yield


def ablation_edits(model: PreTrainedModel, direction: torch.Tensor) -> dict[str, Edit]:
    """The changes of weights that equal the hooks: of the input embeddings, `OUTPUTS`, and their biases."""
    direction = direction.cpu()

    def of_rows(weight: torch.Tensor) -> torch.Tensor:
        return remove_from_rows(weight, direction.to(weight.dtype))

    def of_columns(weight: torch.Tensor) -> torch.Tensor:
        unit = direction.to(weight.dtype)
        return weight - torch.outer(unit, unit @ weight)

    embeddings = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    edits: dict[str, Edit] = {f"{embeddings}.weight": of_rows}
    for name, module in linears(model, OUTPUTS).items():
        edits[f"{name}.weight"] = of_columns
        if module.bias is not None:
            edits[f"{name}.bias"] = of_rows
    return edits


def remove_from_rows(states: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """States [..., D] without their component along a direction [D] of length 1."""
    return states - (states @ direction)[..., None] * direction
