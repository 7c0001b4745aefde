"""The rehearsal of a forward and backward pass on fake tensors, which have shapes and no memory.

The model is transformers' own, the losses are those of the loops, and autograd keeps what it keeps: the bytes alive and
the floating-point operations are counted, not estimated from a formula. A deep model is rehearsed
with one and two periods of its blocks, which repeat, and continued from there.

Legend: B rows, T tokens of each, ℓ blocks of the trunk, L blocks of the model.
"""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, masking_utils

from dcr_ds.engine.build import checkpoint_activations
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.checkpoint_files import BLOCK
from dcr_ds.models.likelihood import CHUNK_LOGITS, Likelihood
from dcr_ds.models.load import DTYPES
from dcr_ds.models.trunk import freeze_tail, trunk_config
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.recipe import Recipe
from dcr_ds.refine.retain import relative_distance_squared

Kind = Literal["refine", "retain", "whole", "align", "dpo"]


@dataclass(frozen=True)
class Work:
    """What one rank computes at once.

    `refine` and `retain` are the two passes of stage 1, on the trunk; `whole` is the contrastive pass as it is without
    this project: the whole model with its head, the tail frozen, h taken from its hidden states; `align` and `dpo` are
    stage 2, a pair being two rows. `whole` has an attention mask for its padding, which every block keeps; this
    project's batches need none. A packed row is a row.
    """

    kind: Kind
    rows: int
    tokens: int

    def inputs(self) -> dict[str, torch.Tensor]:
        ids = torch.zeros(self.rows, self.tokens, dtype=torch.long)
        return {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if self.kind == "whole" else {})


@dataclass(frozen=True)
class Event:
    """A gradient that is complete.

    Attributes:
        block: of its parameter, from 0; None: it belongs to no block.
        peak: the most bytes alive since the event before it, parameters and earlier gradients aside.
        gradient: its bytes.
    """

    block: int | None
    peak: int
    gradient: int


@dataclass(frozen=True)
class Rehearsal:
    """Attributes:
    forward: the most bytes alive in the forward pass.
    events: in the order of the backward pass.
    rest: the most bytes alive after the last event.
    kept: bytes that the forward pass leaves for the backward pass, up to the last hidden state.
    flops: floating-point operations of forward, recomputed forward and backward pass.
    forward_flops: those of the forward pass alone.
    """

    forward: int
    events: list[Event]
    rest: int
    kept: int
    flops: int
    forward_flops: int

    @cached_property
    def gradients(self) -> int:
        return sum(event.gradient for event in self.events)

    def peak(self, kept: Callable[[int], int] = lambda done: 0, in_forward: int = 0) -> int:
        """The most bytes alive beyond parameters and states.

        Args:
            kept: bytes that are on the rank when so many bytes of gradients are complete in this pass: theirs, and what
                reduces them.
            in_forward: the same in the forward pass.
        """
        most, done = self.forward + in_forward, 0
        for event in self.events:
            most = max(most, event.peak + kept(done))
            done += event.gradient
        return max(most, self.rest + kept(done))


def rehearse(recipe: Recipe, folder: Path, work: Work, zero_stage: int = 0, device: str = "cuda") -> Rehearsal:
    """Rehearse a pass of a recipe with the model whose config.json is in `folder`; what was rehearsed is remembered."""
    stages = [
        getattr(recipe, name).model_dump(include={"layer", "pooling", "adapter", "lora"})
        for name in ("refine", "align")
    ]
    key = (recipe.model.model_dump_json(), json.dumps(stages), folder, work, zero_stage == 3, device)
    if key not in _REMEMBERED:
        _REMEMBERED[key] = _rehearse(recipe, folder, work, zero_stage, device)
    return _REMEMBERED[key]


_REMEMBERED: dict[tuple, Rehearsal] = {}


def _rehearse(recipe: Recipe, folder: Path, work: Work, zero_stage: int, device: str) -> Rehearsal:
    config = AutoConfig.from_pretrained(folder)
    period = _period(config)
    trunk = config.num_hidden_layers if work.kind in ("align", "dpo") else int(recipe.refine.layer)
    tail = config.num_hidden_layers - trunk if work.kind == "whole" else 0

    def at(trunk: int, tail: int) -> Rehearsal:
        model = build_model(recipe, folder, work.kind, trunk, tail)
        with _fake(work, zero_stage, device):
            _make_fake(model, DTYPES[recipe.model.dtype])
            return _watched(model, partial(STEPS[work.kind], model, recipe, work))

    if trunk <= 3 * period or trunk % period or tail % period or 0 < tail <= 2 * period:
        return at(trunk, tail)
    first_tail = min(tail, period)
    one, two = at(period, first_tail), at(2 * period, first_tail)
    times = trunk // period
    if not tail:
        return _continue(one, two, times, period)
    more_tail = at(period, 2 * period)
    # a frozen tail is given back before the backward pass begins
    return _deeper(_continue(one, two, times, period), one, more_tail, tail // period)


def build_model(recipe: Recipe, folder: Path, kind: Kind, trunk: int, tail: int = 0) -> torch.nn.Module:
    """The model of a stage with so many blocks, in training mode, on the meta device: shapes without memory."""
    options = {"dtype": DTYPES[recipe.model.dtype], "attn_implementation": recipe.model.attention}
    on_trunk = kind in ("refine", "retain")
    with torch.device("meta"):
        if on_trunk:
            model = freeze_tail(AutoModel.from_config(trunk_config(folder, trunk), **options))
        else:
            config = _with_blocks(AutoConfig.from_pretrained(folder), trunk + tail)
            model = AutoModelForCausalLM.from_config(config, **options)
    model.config.use_cache = False
    if kind == "whole":
        freeze_above(model, trunk)
    elif (stage := recipe.refine if on_trunk else recipe.align).adapter == "lora":
        model = add_lora(model, stage.lora, "lora")
    model.train()
    if recipe.model.activation_checkpointing:
        checkpoint_activations(model)
    return Likelihood(model, "chunked") if kind in ("align", "dpo") else model


def _make_fake(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Put fake tensors on a CPU in the place of a model's meta tensors, in the dtype that the engine casts them to."""
    made: dict[torch.Tensor, torch.Tensor] = {}  # a tied tensor stays one
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in made:
                fake = torch.empty(parameter.shape, dtype=dtype)
                made[parameter] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def freeze_above(model: PreTrainedModel, layer: int) -> None:
    """Freeze what stage 1 does not train: blocks above ℓ, final norm, head, and embeddings tied to it."""
    for name, parameter in model.named_parameters():
        match = BLOCK.search(name)
        in_trunk = int(match[1]) < layer if match else parameter is model.get_input_embeddings().weight
        parameter.requires_grad_(in_trunk)
    if model.config.tie_word_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)


def _contrastive_step(model: PreTrainedModel, recipe: Recipe, work: Work) -> torch.Tensor:
    """The pass of `refine.loop` that carries the gradient of h through a micro-batch."""
    hidden = _one_after_the_other(model(**work.inputs()).last_hidden_state).view(work.rows, work.tokens, -1)
    return _at_pooled(hidden, recipe)


def _whole_step(model: PreTrainedModel, recipe: Recipe, work: Work) -> torch.Tensor:
    hidden = model(**work.inputs(), output_hidden_states=True).hidden_states[_num_trained(model)]
    return _at_pooled(hidden, recipe)


def _at_pooled(hidden: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    h = hidden[:, -1] if recipe.refine.pooling == "last" else hidden.float().mean(1)
    return (h * torch.zeros_like(h)).float().sum()


def _num_trained(model: PreTrainedModel) -> int:
    """ℓ, by the blocks that train."""
    return sum(next(block.parameters()).requires_grad for block in model.get_decoder().layers)


def _retain_step(model: PreTrainedModel, recipe: Recipe, work: Work) -> torch.Tensor:
    hidden = _one_after_the_other(model(**work.inputs()).last_hidden_state)
    return (relative_distance_squared(hidden, torch.zeros_like(hidden)) * torch.zeros(len(hidden))).sum()


def _align_step(model: Likelihood, recipe: Recipe, work: Work) -> torch.Tensor:
    """With every token supervised: the most logits there can be."""
    where = torch.zeros(work.rows * work.tokens, dtype=torch.long)
    reduction = "none" if work.kind == "dpo" else "sum"
    return model(where=where, targets=torch.zeros_like(where), reduction=reduction, **work.inputs()).sum()


def _one_after_the_other(hidden: torch.Tensor) -> torch.Tensor:
    """Rows without their padding [N, D]: a copy."""
    flat = hidden.flatten(0, 1)
    return flat.index_select(0, torch.zeros(len(flat), dtype=torch.long))


STEPS: dict[Kind, Callable[..., torch.Tensor]] = {
    "refine": _contrastive_step,
    "whole": _whole_step,
    "retain": _retain_step,
    "align": _align_step,
    "dpo": _align_step,
}


def _watched(model: torch.nn.Module, step: Callable[[], torch.Tensor]) -> Rehearsal:
    """Run a step and its backward pass, and drop each gradient as soon as it is complete."""
    events: list[Event] = []
    handles = []
    kept = 0
    known = [*model.parameters(), *model.buffers()]

    def note_kept(*_) -> None:
        nonlocal kept
        kept = live.alive - before

    def drop_gradient(block: int | None) -> Callable[[torch.nn.Parameter], None]:
        def hook(parameter: torch.nn.Parameter) -> None:
            assert parameter.grad is not None  # the hook runs after it was accumulated
            events.append(Event(block, live.peak - before, parameter.grad.nbytes))
            parameter.grad = None
            live.peak = live.alive

        return hook

    whole: Any = model.model if isinstance(model, Likelihood) else model
    decoder = whole.get_decoder()
    handles.append(decoder.register_forward_hook(note_kept))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            match = BLOCK.search(name)
            hook = drop_gradient(int(match[1]) if match else None)
            handles.append(parameter.register_post_accumulate_grad_hook(hook))
    with LiveBytes(known) as live, _CountedFlops() as counted:
        before = live.alive
        loss = step()
        forward, forward_flops = live.peak - before, counted.flops
        live.peak = live.alive
        loss.backward()
        rest = live.peak - before
    for handle in handles:
        handle.remove()
    return Rehearsal(forward, events, rest, kept, counted.flops, forward_flops)


class _CountedFlops(TorchDispatchMode):
    """Floating-point operations by torch's formulas; its own FlopCounterMode would keep activations alive."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def _fake(work: Work, zero_stage: int, device: str) -> Iterator[None]:
    """Fake tensors on a CPU, with what differs from a real pass on the device that is planned for.

    The chunks of the loss are that device's; under ZeRO-3 DeepSpeed's linear function stands in torch's place, which
    keeps its input where the weight is frozen, too; and transformers is told that the rows are not packed, which
    it reads off real positions, and allows for by a mask where they are fake.
    """
    with FakeTensorMode(), patch.dict(CHUNK_LOGITS, {"cpu": CHUNK_LOGITS[device]}), ExitStack() as patches:
        if zero_stage == 3:
            patches.enter_context(patch.object(torch.nn.functional, "linear", zero3_linear_wrap))
        if work.kind != "whole":
            patches.enter_context(patch.object(masking_utils, "find_packed_sequence_indices", lambda _: None))
        yield


def _period(config: PreTrainedConfig) -> int:
    """After how many blocks their kinds repeat (sliding and full attention alternate in some models)."""
    kinds = getattr(config, "layer_types", None) or ["full"] * config.num_hidden_layers
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) > 1:
        return config.num_hidden_layers
    return next(
        period
        for period in range(1, len(kinds) + 1)
        if all(kind == kinds[index % period] for index, kind in enumerate(kinds))
    )


def _with_blocks(config: PreTrainedConfig, blocks: int) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    config.num_hidden_layers = blocks
    return config


def _continue(one: Rehearsal, two: Rehearsal, times: int, period: int) -> Rehearsal:
    """From one and two periods of blocks to `times` of them.

    What a period keeps for the backward pass lies under all events above it. Norm, head and the last period come first,
    as they do of two; the lower period of two stands for all others.
    """
    kept = two.kept - one.kept
    start = next(index for index, event in enumerate(two.events) if event.block is not None and event.block < period)
    end = next((i for i, event in enumerate(two.events) if i > start and event.block is None), len(two.events))
    events = [_moved(event, (times - 2) * period, (times - 2) * kept) for event in two.events[:start]]
    for number in reversed(range(times - 1)):
        events += [_moved(event, number * period, number * kept) for event in two.events[start:end]]
    return _deeper(replace(two, events=[*events, *two.events[end:]]), one, two, times - 1)


def _moved(event: Event, blocks: int, kept: int) -> Event:
    return Event(event.block if event.block is None else event.block + blocks, event.peak + kept, event.gradient)


def _deeper(rehearsal: Rehearsal, one: Rehearsal, two: Rehearsal, times: int) -> Rehearsal:
    """What grows evenly with each period, for `times` of them instead of one, beside the events."""
    kept = (times - 1) * (two.kept - one.kept)
    return replace(
        rehearsal,
        forward=rehearsal.forward + kept,
        kept=rehearsal.kept + kept,
        flops=rehearsal.flops + (times - 1) * (two.flops - one.flops),
        forward_flops=rehearsal.forward_flops + (times - 1) * (two.forward_flops - one.forward_flops),
    )


@register_flop_formula(torch.ops.aten._grouped_mm)
def _grouped_mm_flops(a_shape, b_shape, *_, out_shape=None, **__) -> int:
    """Rows [M, K] times the matrix [K, N] of their group; where both are 2D, the gradient of the matrices."""
    if len(b_shape) == 3:
        return 2 * a_shape[0] * a_shape[1] * b_shape[-1]
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]
