"""The rehearsal of a micro-batch: the stage's own step on fake tensors, which have shapes and no memory.

The model is transformers' own, the forward pass and the loss are those of the loops, and autograd keeps what it keeps:
the bytes alive and the floating-point operations are counted, not estimated from a formula. A deep model is rehearsed
with one and two periods of its blocks, which repeat, and continued from there.

Legend: B rows, T tokens of each, ℓ blocks of the trunk, L blocks of the model.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dcr_ds.align.sft import summed_loss
from dcr_ds.engine.build import checkpoint_activations
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.chat import Encoded
from dcr_ds.models.likelihood import CHUNK_LOGITS, Likelihood
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

    def peak(self, kept: Callable[[int], int] = lambda done: 0) -> int:
        """The most bytes alive beyond parameters and states.

        Args:
            kept: bytes of gradients that are on the rank when so many bytes of them are complete in this pass.
        """
        most, done = self.forward + kept(0), 0
        for event in self.events:
            most = max(most, event.peak + kept(done))
            done += event.gradient
        return max(most, self.rest + kept(done))


def rehearse(recipe: Recipe, folder: Path, work: Work, zero_stage: int = 0, device: str = "cuda") -> Rehearsal:
    """Rehearse a micro-batch of a recipe with the model whose config.json is in `folder`."""
    config = AutoConfig.from_pretrained(folder)
    period = _period(config)
    trunk = recipe.refine.layer if work.kind != "align" else config.num_hidden_layers
    tail = config.num_hidden_layers - trunk if work.kind == "whole" else 0

    def at(trunk: int, tail: int) -> Rehearsal:
        model = build_model(recipe, folder, work.kind, trunk, tail)
        with _fake(zero_stage, device):
            _make_fake(model, DTYPES[recipe.model.dtype])
            return _watched(model, STEPS[work.kind](model, recipe, work, trunk))

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


def build_model(recipe: Recipe, folder: Path, kind: str, trunk: int, tail: int = 0) -> torch.nn.Module:
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
            freeze_above(model, trunk)
    model.train()
    if recipe.model.activation_checkpointing:
        checkpoint_activations(model)
    return Likelihood(model, "chunked") if kind == "align" else model


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
            events.append(Event(block, live.peak - before, parameter.grad.nbytes))
            parameter.grad = None
            live.peak = live.alive

        return hook

    decoder = (model.model if isinstance(model, Likelihood) else model).get_decoder()
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
def _fake(zero_stage: int, device: str) -> Iterator[None]:
    """Fake tensors on a CPU, with what differs on the device that is planned for, or under ZeRO-3.

    Those are the chunks of the loss, and the linear function that DeepSpeed puts in torch's place: it keeps its input
    where the weight is frozen, too.
    """
    linear, chunk = torch.nn.functional.linear, CHUNK_LOGITS["cpu"]
    with FakeTensorMode():
        if zero_stage == 3:
            torch.nn.functional.linear = zero3_linear_wrap
        CHUNK_LOGITS["cpu"] = CHUNK_LOGITS[device]
        try:
            yield
        finally:
            torch.nn.functional.linear, CHUNK_LOGITS["cpu"] = linear, chunk


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
    inside = [event for event in one.events if event.block is not None]
    num_above = next((index for index, event in enumerate(one.events) if event.block is not None), 0)
    above, below = one.events[:num_above], one.events[num_above + len(inside) :]
    events = [Event(None, event.peak + (times - 1) * kept, event.gradient) for event in above]
    for number in reversed(range(times)):
        events += [
            Event(event.block + number * period, event.peak + number * kept, event.gradient) for event in inside
        ]
    return _deeper(replace(one, events=[*events, *below]), one, two, times)


def _deeper(rehearsal: Rehearsal, one: Rehearsal, two: Rehearsal, times: int) -> Rehearsal:
    """What grows evenly with each period, for `times` of them instead of one."""
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
