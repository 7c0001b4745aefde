"""Rehearsal: run a forward and backward pass on fake tensors, which have shapes but no memory.

Live bytes and floating-point operations are counted while autograd runs the real model and loss, not estimated from a
formula. A deep model is rehearsed with one and two periods of its repeating blocks, and extrapolated.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula
from transformers import AutoConfig, PreTrainedConfig, masking_utils

from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.errors import UserError, one_line
from dcr_ds.models.checkpoint_files import BLOCK
from dcr_ds.models.likelihood import CHUNK_LOGITS, Likelihood
from dcr_ds.models.load import DTYPES
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.plan.passes import PASSES, STAGE_2, Work, build_model
from dcr_ds.recipe import Recipe


@dataclass(frozen=True)
class Event:
    """The moment at which the gradient of a parameter is complete.

    Attributes:
        block: index of the parameter's block; None outside of the blocks.
        peak: peak live bytes since the previous event, without parameters and earlier gradients.
        gradient: bytes of the gradient.
    """

    block: int | None
    peak: int
    gradient: int


@dataclass(frozen=True)
class Rehearsal:
    """The result of a rehearsed pass.

    Attributes:
        forward: peak live bytes in the forward pass.
        events: in the order of the backward pass.
        rest: peak live bytes after the last event.
        kept: bytes that the forward pass saves for the backward pass, up to the last hidden state.
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
        """Peak live bytes besides parameters and optimizer states.

        Args:
            kept: maps the bytes of gradients completed in this pass to the bytes that gradients and their reduction
                then occupy.
            in_forward: bytes that gradients and their reduction occupy in the forward pass.
        """
        most, done = self.forward + in_forward, 0
        for event in self.events:
            most = max(most, event.peak + kept(done))
            done += event.gradient
        return max(most, self.rest + kept(done))


def rehearse(recipe: Recipe, folder: Path, work: Work, zero_stage: int = 0, device: str = "cuda") -> Rehearsal:
    """Rehearse a pass of a recipe with the model whose config.json is in `folder`; results are cached.

    Raises:
        UserError: fields of config.json contradict each other, so that a model is built that cannot compute.
    """
    stages = [
        getattr(recipe, name).model_dump(include={"layer", "pooling", "adapter", "lora"})
        for name in ("refine", "align")
    ]
    key = (recipe.model.model_dump_json(), json.dumps(stages), folder, work, zero_stage == 3, device)
    if key not in _CACHE:
        _CACHE[key] = _rehearse(recipe, folder, work, zero_stage, device)
    return _CACHE[key]


_CACHE: dict[tuple, Rehearsal] = {}


def _rehearse(recipe: Recipe, folder: Path, work: Work, zero_stage: int, device: str) -> Rehearsal:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    period = _period(config)
    trunk = config.num_hidden_layers if work.kind in STAGE_2 else int(recipe.refine.layer)
    tail = config.num_hidden_layers - trunk if work.kind == "whole" else 0

    def at(trunk: int, tail: int) -> Rehearsal:
        model = build_model(recipe, folder, work.kind, trunk, tail)
        with _fake(work, zero_stage, device):
            _make_fake(model, DTYPES[recipe.model.dtype])
            try:
                return _watched(model, partial(PASSES[work.kind], model, recipe, work))
            except RuntimeError as error:  # as torch raises for shapes that do not fit
                raise UserError(
                    f"{folder / 'config.json'}: a model of it cannot compute ({one_line(error)}); copy it again"
                ) from error

    if trunk <= 3 * period or trunk % period or tail % period or 0 < tail <= 2 * period:
        return at(trunk, tail)
    first_tail = min(tail, period)
    first, second = at(period, first_tail), at(2 * period, first_tail)
    times = trunk // period
    if not tail:
        return _continue(first, second, times, period)
    more_tail = at(period, 2 * period)
    # the activations of a frozen tail are freed before the backward pass begins
    return _deeper(_continue(first, second, times, period), first, more_tail, tail // period)


def _make_fake(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Replace the meta tensors of a model by fake CPU tensors, in the dtype that the engine casts them to."""
    fakes: dict[torch.Tensor, torch.Tensor] = {}  # tied tensors stay tied
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in fakes:
                fake = torch.empty(parameter.shape, dtype=dtype)
                fakes[parameter] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
            setattr(module, name, fakes[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _watched(model: torch.nn.Module, step: Callable[[], torch.Tensor]) -> Rehearsal:
    """Run a forward and backward pass, and drop each gradient as soon as it is complete."""
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

    base: Any = model.model if isinstance(model, Likelihood) else model
    decoder = base.get_decoder()
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
    """Counts floating-point operations by torch's formulas; FlopCounterMode itself would keep activations alive."""

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
    """Fake tensors on a CPU, with the behaviour of a real pass on the planned device.

    The loss uses the chunk size of that device. Under ZeRO-3, DeepSpeed replaces torch's linear function by one that
    saves its input even if the weight is frozen. transformers detects packed rows from the values of positions and
    adds a mask if they are fake, so detection is switched off.
    """
    with FakeTensorMode(), patch.dict(CHUNK_LOGITS, {"cpu": CHUNK_LOGITS[device]}), ExitStack() as patches:
        if zero_stage == 3:
            of_zero3 = deepspeed.runtime.zero.linear.zero3_linear_wrap
            patches.enter_context(patch.object(torch.nn.functional, "linear", of_zero3))
        if work.kind != "whole":
            patches.enter_context(patch.object(masking_utils, "find_packed_sequence_indices", lambda _: None))
        yield


def _period(config: PreTrainedConfig) -> int:
    """Number of blocks after which their kinds repeat (some models alternate sliding and full attention)."""
    kinds = getattr(config, "layer_types", None) or ["full"] * config.num_hidden_layers
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) > 1:
        return config.num_hidden_layers
    return next(
        period
        for period in range(1, len(kinds) + 1)
        if all(kind == kinds[index % period] for index, kind in enumerate(kinds))
    )


def _continue(first: Rehearsal, second: Rehearsal, times: int, period: int) -> Rehearsal:
    """Extrapolate from one and two periods of blocks to `times` periods.

    What a period saves for the backward pass is alive during all events of the periods above it. The events of norm,
    head and last period are those of `second`; its lower period represents all others.
    """
    kept = second.kept - first.kept
    start = next(index for index, event in enumerate(second.events) if event.block is not None and event.block < period)
    end = next((i for i, event in enumerate(second.events) if i > start and event.block is None), len(second.events))
    events = [_moved(event, (times - 2) * period, (times - 2) * kept) for event in second.events[:start]]
    for number in reversed(range(times - 1)):
        events += [_moved(event, number * period, number * kept) for event in second.events[start:end]]
    return _deeper(replace(second, events=[*events, *second.events[end:]]), first, second, times - 1)


def _moved(event: Event, blocks: int, kept: int) -> Event:
    return Event(event.block if event.block is None else event.block + blocks, event.peak + kept, event.gradient)


def _deeper(rehearsal: Rehearsal, first: Rehearsal, second: Rehearsal, times: int) -> Rehearsal:
    """Extrapolate what grows linearly with the number of periods, except the events, from one period to `times`."""
    kept = (times - 1) * (second.kept - first.kept)
    return replace(
        rehearsal,
        forward=rehearsal.forward + kept,
        kept=rehearsal.kept + kept,
        flops=rehearsal.flops + (times - 1) * (second.flops - first.flops),
        forward_flops=rehearsal.forward_flops + (times - 1) * (second.forward_flops - first.forward_flops),
    )


@register_flop_formula(torch.ops.aten._grouped_mm)
def _grouped_mm_flops(a_shape, b_shape, *_, out_shape=None, **__) -> int:
    """Rows [M, K] times the matrix [K, N] of their group; if both are 2D, the gradient of the matrices."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]
