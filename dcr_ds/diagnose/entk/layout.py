"""The parts of a causal language model whose per-sample gradients the eNTK can compute, and the selected parameters."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dcr_ds.errors import UserError
from dcr_ds.models.merge import has_adapter

if TYPE_CHECKING:
    from peft import PeftModel

BLOCKS = re.compile(r"blocks(<=|>)(\d+)")
QUANTISED = ("Linear4bit", "Linear8bitLt", "LinearFP8", "QuantLinear", "HQQLinear", "AqlmLinear", "EetqLinear")


@dataclass(frozen=True)
class Part:
    """A module that owns selected parameters: attribute → name of the parameter in the model."""

    module: nn.Module
    kind: str
    parameters: dict[str, str]


@dataclass(frozen=True)
class Layout:
    """Where a model keeps its blocks and its head, and what is selected in and outside the blocks, by module name."""

    model: PreTrainedModel
    blocks: nn.ModuleList
    head: nn.Linear
    embeddings: tuple[nn.Module, ...]
    outside: dict[str, Part]
    inside: tuple[dict[str, Part], ...]  # per block
    tied: str | None  # selected parameter that is both input embedding and head

    @property
    def lowest(self) -> int:
        """Index of the lowest block that the backward pass must reach."""
        if any(part.kind != "head" and part.module is not self.head for part in self.outside.values()):
            return 0
        return next((index for index, parts in enumerate(self.inside) if parts), len(self.inside))

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        parts = [*self.outside.values(), *(part for block in self.inside for part in block.values())]
        return {name: getattr(part.module, key) for part in parts for key, name in part.parameters.items()}


def read_layout(model: "PreTrainedModel | PeftModel", selection: str) -> Layout:
    """Find the parts of a model, and refuse what the method does not cover."""
    model = without_adapter_wrapper(model)
    refuse_quantised(model)
    blocks, head = find_blocks(model), model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise UserError(f"eNTK: the model's head is a {type(head).__name__}; only a plain linear head is supported")
    names = {module: name for name, module in model.named_modules()}
    selected = select_parameters(model, f"{names[blocks]}.", selection)
    outside: dict[str, Part] = {}
    inside: list[dict[str, Part]] = [{} for _ in blocks]
    owners: dict[str, list[nn.Module]] = {}
    for module_name, module in model.named_modules():
        own = {key: selected[id(value)] for key, value in module._parameters.items() if id(value) in selected}
        if not own:
            continue
        kind = "head" if module is head else kind_of(module, module_name)
        for name in own.values():
            owners.setdefault(name, []).append(module)
        in_blocks = module_name.startswith(f"{names[blocks]}.")
        place = inside[int(module_name.removeprefix(f"{names[blocks]}.").split(".")[0])] if in_blocks else outside
        place[module_name] = Part(module, kind, own)
    embeddings = tuple(module for module in model.modules() if isinstance(module, nn.Embedding))
    return Layout(model, blocks, head, embeddings, outside, tuple(inside), tied_parameter(owners, head))


def without_adapter_wrapper(model: "PreTrainedModel | PeftModel") -> PreTrainedModel:
    """The model with its adapters in place, without PEFT's wrapper."""
    adapters: dict[str, Any] = getattr(model, "peft_config", {})
    for name, config in adapters.items():
        if getattr(config, "is_prompt_learning", False):
            raise UserError(f"eNTK: the adapter {name!r} ({config.peft_type}) adds virtual tokens; not supported")
    unwrapped: Any = model.get_base_model() if has_adapter(model) else model
    return unwrapped


def refuse_quantised(model: nn.Module) -> None:
    kinds = {type(module).__name__ for module in model.modules()} & set(QUANTISED)
    if kinds or getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        what = ", ".join(sorted(kinds)) or "quantised weights"
        raise UserError(f"eNTK: the model has {what}, whose weights have no gradient; load it without quantisation")


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise UserError("eNTK: encoder-decoder models are not supported; use a causal language model")
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return module
    raise UserError(f"eNTK: no list of {config.num_hidden_layers} blocks in {type(model).__name__}")


def select_parameters(model: PreTrainedModel, blocks: str, selection: str) -> dict[int, str]:
    """The selected parameters, id → name: "all", "blocks<=N", "blocks>N" or a regular expression on their names."""
    if selection == "all":
        pattern = re.compile("")
    elif match := BLOCKS.fullmatch(selection.replace(" ", "")):
        sign, bound = match[1], int(match[2])
        count = model.config.get_text_config().num_hidden_layers
        numbers = range(bound) if sign == "<=" else range(bound, count)
        if bound > count or not numbers:
            raise UserError(f"eNTK: parameters {selection!r} selects no block; the model has blocks 1 to {count}")
        pattern = re.compile(f"^{re.escape(blocks)}({'|'.join(map(str, numbers))})\\.")
    else:
        try:
            pattern = re.compile(selection)
        except re.error as error:
            raise UserError(f"eNTK: parameters {selection!r} is not a valid regular expression: {error}") from None
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    selected = {id(parameter): canonical[id(parameter)] for name, parameter in every if pattern.search(name)}
    if not selected:
        raise UserError(f"eNTK: parameters {selection!r} matches no parameter; use all, blocks<=N, blocks>N or a regex")
    return selected


def kind_of(module: nn.Module, name: str) -> str:
    """How the gradients of a module's parameters are computed."""
    forward = type(module).forward
    if forward is nn.Linear.forward:
        return "linear"
    if type(module) is Conv1D:
        return "conv1d"
    if isinstance(module, nn.Embedding) and (forward is nn.Embedding.forward or hasattr(module, "embed_scale")):
        return "embedding"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):  # or one that adds a constant to the weight, as Nemotron's
        return "layer norm"
    if "Norm" in type(module).__name__ and not any(module.children()):
        return "elementwise norm"
    keys = ", ".join(f"{name}.{key}" for key in module._parameters)
    raise UserError(
        f"eNTK: no per-sample gradient for the parameters of {type(module).__name__} ({keys}); "
        "choose others by a regular expression on their names (--parameters self_attn)"
    )


def tied_parameter(owners: dict[str, list[nn.Module]], head: nn.Module) -> str | None:
    """The name of the parameter that head and input embedding share; other sharing is refused."""
    tied = None
    for name, modules in owners.items():
        if len(modules) == 1:
            continue
        if len(modules) != 2 or head not in modules or not any(isinstance(module, nn.Embedding) for module in modules):
            raise UserError(f"eNTK: {name} is shared by {len(modules)} modules; only a tied head is supported")
        tied = name
    return tied


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for the parameters; afterwards all is as before."""
    training = {module: module.training for module in model.modules()}
    states: dict[Tensor, tuple[bool, Tensor | None]] = {p: (p.requires_grad, p.grad) for p in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, (required, gradient) in states.items():
            parameter.requires_grad_(required).grad = gradient
