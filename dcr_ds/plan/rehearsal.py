"""The rehearsal of a micro-batch: the stage's own step on fake tensors, which have shapes and no memory.

The model is transformers' own, the forward pass and the loss are those of the loops, and autograd keeps what it keeps:
the bytes alive and the floating-point operations are counted, not estimated from a formula. A deep model is rehearsed
with one and two periods of its blocks, which repeat, and continued from there.

Legend: B rows, T tokens of each, ℓ blocks of the trunk, L blocks of the model.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dcr_ds.align.sft import summed_loss
from dcr_ds.engine.build import checkpoint_activations
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.chat import Encoded
from dcr_ds.models.load import DTYPES
from dcr_ds.models.source import BLOCK
from dcr_ds.models.trunk import freeze_tail, trunk_config
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.recipe import Recipe
from dcr_ds.refine.embed import hidden_states
from dcr_ds.refine.retain import Anchors, retain_loss

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    """What one rank computes at once.

    `refine` and `retain` are the two passes of stage 1, on the trunk; `whole` is the contrastive pass as it is without
    this project: the whole model with its head, the tail frozen, h taken from its hidden states; `align` is stage 2.
    """

    kind: Literal["refine", "retain", "whole", "align"]
    rows: int
    tokens: int


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
    events: in the order of the backward pass.
    rest: the most bytes alive after the last event.
    kept: bytes that the forward pass leaves for the backward pass, up to the last hidden state.
    flops: floating-point operations of forward, recomputed forward and backward pass.
    forward_flops: those of the forward pass alone.
    """

    events: list[Event]
    rest: int
    kept: int
    flops: int
    forward_flops: int

    @cached_property
    def gradients(self) -> int:
        return sum(event.gradient for event in self.events)

    def peak(self, share: float = 0.0, already: float = 0.0) -> int:
        """The most bytes alive beyond parameters and states.

        Args:
            share: how much of each gradient stays on the rank once it is complete.
            already: gradient bytes there before the pass.
        """
        most = grown = 0
        for event in self.events:
            most = max(most, event.peak + grown)
            grown += share * event.gradient
        return int(max(most, self.rest + grown) + already)


def rehearse(recipe: Recipe, folder: Path, work: Work, zero_stage: int = 0) -> Rehearsal:
    """Rehearse a micro-batch of a recipe with the model whose config.json is in `folder`."""
    config = AutoConfig.from_pretrained(folder)
    period = _period(config)
    trunk = recipe.refine.layer if work.kind != "align" else config.num_hidden_layers
    tail = config.num_hidden_layers - trunk if work.kind == "whole" else 0
    if trunk <= 3 * period or trunk % period or tail % period or 0 < tail <= 2 * period:
        return _rehearse(recipe, folder, work, zero_stage, trunk, tail)
    first_tail = min(tail, period)
    one = _rehearse(recipe, folder, work, zero_stage, period, first_tail)
    two = _rehearse(recipe, folder, work, zero_stage, 2 * period, first_tail)
    times = trunk // period
    if not tail:
        return _continue(one, two, times, period)
    more_tail = _rehearse(recipe, folder, work, zero_stage, period, 2 * period)
    return _with_tail(_continue(one, two, times, period), one, more_tail, tail // period)


def _rehearse(recipe: Recipe, folder: Path, work: Work, zero_stage: int, trunk: int, tail: int) -> Rehearsal:
    model = build_model(recipe, folder, work.kind, trunk, tail)
    with _fake(zero_stage):
        _make_fake(model, DTYPES[recipe.model.dtype])
        return _watched(model, STEPS[work.kind](model, recipe, work, trunk))


def build_model(recipe: Recipe, folder: Path, kind: str, trunk: int, tail: int = 0) -> PreTrainedModel:
    """The model of a stage with so many blocks, in training mode, on the meta device: shapes without memory."""
    attention = {"dtype": DTYPES[recipe.model.dtype], "attn_implementation": recipe.model.attention}
    if kind in ("refine", "retain"):
        with torch.device("meta"):
            model = freeze_tail(AutoModel.from_config(trunk_config(folder, trunk), **attention))
    else:
        config = _with_blocks(AutoConfig.from_pretrained(folder), trunk + tail)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **attention)
        model.config.use_cache = False
        if kind == "align" and recipe.align.adapter == "lora":
            model = add_lora(model, recipe.align.lora)
        elif kind == "whole":
            _freeze_above(model, trunk)
    model.train()
    if recipe.model.activation_checkpointing:
        checkpoint_activations(model)
    return model


def _make_fake(model: PreTrainedModel, dtype: torch.dtype) -> None:
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


def _freeze_above(model: PreTrainedModel, layer: int) -> None:
    """Freeze what stage 1 does not train: blocks above ℓ, final norm, head, and embeddings tied to it."""
    for name, parameter in model.named_parameters():
        match = BLOCK.search(name)
        in_trunk = int(match[1]) < layer if match else parameter is model.get_input_embeddings().weight
        parameter.requires_grad_(in_trunk)
    if model.config.tie_word_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)


def _contrastive_step(model: PreTrainedModel, recipe: Recipe, work: Work, layer: int) -> Callable[[], torch.Tensor]:
    """The pass of `refine.loop` that carries the gradient of h through a micro-batch."""
    rows = [[0] * work.tokens] * work.rows

    def step() -> torch.Tensor:
        if work.kind == "whole":
            ids = torch.zeros(work.rows, work.tokens, dtype=torch.long)
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
            hidden = hidden.hidden_states[layer]
        else:
            hidden = hidden_states(model, rows, CPU)[0]
        h = hidden[:, -1] if recipe.refine.pooling == "last" else hidden.mean(1)
        return (h * torch.zeros_like(h)).float().sum()

    return step


def _retain_step(model: PreTrainedModel, recipe: Recipe, work: Work, layer: int) -> Callable[[], torch.Tensor]:
    rows, anchors = [[0] * work.tokens] * work.rows, Anchors()
    original = torch.zeros(work.tokens, model.config.hidden_size, dtype=DTYPES[recipe.model.dtype])
    anchors.states = dict.fromkeys(range(work.rows), original)
    return lambda: retain_loss(model, rows, range(work.rows), [True] * work.rows, anchors, CPU)


def _align_step(model: PreTrainedModel, recipe: Recipe, work: Work, layer: int) -> Callable[[], torch.Tensor]:
    """With every token after the first supervised: the most logits there can be."""
    samples = [Encoded([0] * work.tokens, 1)] * work.rows
    return lambda: summed_loss(model, samples, [True] * work.rows, 0, CPU)


STEPS = {"refine": _contrastive_step, "whole": _contrastive_step, "retain": _retain_step, "align": _align_step}


def _watched(model: PreTrainedModel, step: Callable[[], torch.Tensor]) -> Rehearsal:
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
            events.append(Event(block, live.peak - before, parameter.grad.nbytes))
            parameter.grad = None
            live.peak = live.alive

        return hook

    handles.append(model.get_decoder().register_forward_hook(note_kept))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            match = BLOCK.search(name)
            hook = drop_gradient(int(match[1]) if match else None)
            handles.append(parameter.register_post_accumulate_grad_hook(hook))
    with LiveBytes(known) as live, FlopCounterMode(display=False) as flops:
        before = live.alive
        loss = step()
        forward_flops = flops.get_total_flops()
        loss.backward()
        rest = live.peak - before
    for handle in handles:
        handle.remove()
    return Rehearsal(events, rest, kept, flops.get_total_flops(), forward_flops)


@contextmanager
def _fake(zero_stage: int) -> Iterator[None]:
    """Fake tensors; under ZeRO-3 also the linear function that DeepSpeed puts in torch's place, which keeps more."""
    linear = torch.nn.functional.linear
    with FakeTensorMode():
        if zero_stage == 3:
            torch.nn.functional.linear = zero3_linear_wrap
        try:
            yield
        finally:
            torch.nn.functional.linear = linear


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

    What a period keeps for the backward pass lies under all events above it; the events of the last period come first.
    """
    kept = two.kept - one.kept
    above = [event for event in one.events if event.block is None][: _num_above(one)]
    inside = [event for event in one.events if event.block is not None]
    below = one.events[len(above) + len(inside) :]
    events = [Event(None, event.peak + (times - 1) * kept, event.gradient) for event in above]
    for number in reversed(range(times)):
        events += [
            Event(event.block + number * period, event.peak + number * kept, event.gradient) for event in inside
        ]
    flops = one.flops + (times - 1) * (two.flops - one.flops)
    forward = one.forward_flops + (times - 1) * (two.forward_flops - one.forward_flops)
    return Rehearsal([*events, *below], one.rest, one.kept + (times - 1) * kept, flops, forward)


def _num_above(rehearsal: Rehearsal) -> int:
    """Events before the first one of a block: those of final norm and head."""
    return next((index for index, event in enumerate(rehearsal.events) if event.block is not None), 0)


def _with_tail(trunk: Rehearsal, one: Rehearsal, two: Rehearsal, times: int) -> Rehearsal:
    """With `times` frozen periods above the trunk instead of one: they matter before the first gradient alone."""
    first = trunk.events[0]
    more = (times - 1) * (two.events[0].peak - one.events[0].peak)
    events = [Event(first.block, first.peak + more, first.gradient), *trunk.events[1:]]
    kept = trunk.kept + (times - 1) * (two.kept - one.kept)
    flops = trunk.flops + (times - 1) * (two.flops - one.flops)
    forward = trunk.forward_flops + (times - 1) * (two.forward_flops - one.forward_flops)
    return Rehearsal(events, trunk.rest, kept, flops, forward)


@register_flop_formula(torch.ops.aten._grouped_mm)
def _grouped_mm_flops(a_shape, b_shape, *_, out_shape=None, **__) -> int:
    """Rows [M, K] times the matrix [K, N] of their group; where both are 2D, the gradient of the matrices."""
    if len(b_shape) == 3:
        return 2 * a_shape[0] * a_shape[1] * b_shape[-1]
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]
