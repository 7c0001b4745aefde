"""The linear modules of a model that weight edits change, found by their names in each block."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from dcr_ds.errors import UserError

ATTENTION_OUT, MLP_OUT = "self_attn.o_proj", "mlp.down_proj"
OUTPUTS = (ATTENTION_OUT, MLP_OUT)  # what a block adds to the residual stream comes from these two
# behind attention or MLP, as in Gemma 2, OLMo 2 and GLM-4-0414; post_attention_layernorm alone is that before the MLP
SECOND_NORM = re.compile(r"post_(?!attention_layernorm$)\w*norm")


def blocks_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The blocks of a causal language model by their names, from the first to the last."""
    decoder: Any = model.get_decoder()
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(block)]: block for block in decoder.layers}


def linears(model: PreTrainedModel, paths: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear modules at the given paths of each block, by their names in the model, block by block.

    Raises:
        UserError: a block has another module there, or none.
    """
    found: dict[str, nn.Linear] = {}
    for name, block in blocks_of(model).items():
        modules = dict(block.named_modules())
        for path in paths:
            module = modules.get(path)
            if not isinstance(module, nn.Linear):
                raise UserError(_missing(model, name, path, modules))
            found[f"{name}.{path}"] = module
    return found


def check_residual(model: PreTrainedModel) -> None:
    """Raise UserError unless each block adds the outputs of `OUTPUTS` to the residual stream as they are."""
    linears(model, OUTPUTS)
    block = next(iter(blocks_of(model).values()))
    if norm := next((name for name, _ in block.named_children() if SECOND_NORM.match(name)), None):
        raise UserError(
            f"{model.config.model_type}: its blocks normalise the outputs of {' and '.join(OUTPUTS)} again ({norm}) "
            "before they are added, so that no change of these weights has the published effect; use a model without"
        )


def _missing(model: PreTrainedModel, block: str, path: str, modules: dict[str, nn.Module]) -> str:
    there = ", ".join(name for name, module in modules.items() if isinstance(module, nn.Linear))
    experts = next((name for name in modules if name.endswith(".experts")), None)
    reason = f"it is a mixture of experts ({experts})" if experts else f"its linear modules are {there}"
    return (
        f"{model.config.model_type}: a linear module {path} was looked for in each block, and {block} has none: "
        f"{reason}; this baseline cannot be applied to the model"
    )
