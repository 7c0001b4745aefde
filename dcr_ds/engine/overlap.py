"""Check `overlap_comm` under ZeRO-3: the first step has the same loss and gradient with overlap and without.

With overlap DeepSpeed gathers parameters and reduces gradients on streams of their own. Some releases did not wait for
the right stream, and trained on gradients that were incomplete or NaN: DeepSpeed #7898, fixed before 0.19. Both streams
can be exchanged between two steps.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.engine.distributed import Ranks, print_on_main, sum_over_ranks
from dcr_ds.engine.zero3 import is_checked
from dcr_ds.progress import heartbeat
from dcr_ds.recipe import Recipe

TOLERANCE = 0.02  # of the norm of each gradient, and of the loss; bf16 kernels differ by less from run to run
FLOOR = 1e-3  # of the whole gradient's norm: smaller gradients are rounding
GATHER_STREAM = "_PartitionedParameterCoordinator__allgather_stream"


class Streams:
    """The streams that an engine built with `overlap_comm` communicates on."""

    def __init__(self, engine: Any):
        self.optimizer = engine.optimizer
        self.coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
        self.own = (self.optimizer.reduce_and_partition_stream, getattr(self.coordinator, GATHER_STREAM))

    def use(self, overlap: bool) -> None:
        """Communicate on streams of their own, or, without overlap, on the one that computes."""
        deepspeed.accelerator.get_accelerator().synchronize()
        default = deepspeed.accelerator.get_accelerator().default_stream()
        reduce, gather = self.own if overlap else (default, default)
        self.optimizer.reduce_and_partition_stream = reduce
        setattr(self.coordinator, GATHER_STREAM, gather)


def settle_overlap(engine: Any, recipe: Recipe, first_step: Callable[[], dict[str, Any]], ranks: Ranks) -> None:
    """Turn overlap off if the first step differs with it, where `overlap_comm` is "auto". All ranks.

    Args:
        recipe: resolved.
        first_step: accumulates the gradients of a step, and returns its row with `loss`; it is called twice, and the
            gradients are discarded.
    """
    assert isinstance(recipe.deepspeed, dict)  # resolved
    zero = recipe.deepspeed.get("zero_optimization") or {}
    if is_checked(zero, ranks.world_size, ranks.device.type == "cuda"):
        compare(engine, Streams(engine), first_step, ranks)


def compare(engine: Any, streams: Streams, first_step: Callable[[], dict[str, Any]], ranks: Ranks) -> bool:
    """Return whether the loss and the norm of each gradient agree; leaves overlap on if they do, else off."""
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    measured = []
    with torch.random.fork_rng(devices):
        for overlap in (False, True):
            heartbeat("first step with and without overlap_comm")
            streams.use(overlap)
            torch.manual_seed(ranks.rank)
            loss = first_step()["loss"]
            measured.append((loss, gradient_norms(engine, ranks)))
            engine.optimizer.zero_grad()
    (loss, norms), (overlapped_loss, overlapped) = measured
    largest = max(norms.norm().item(), 1e-30)
    error = ((overlapped - norms).abs() / (norms + FLOOR * largest)).max().item()
    equal = math.isfinite(error) and error <= TOLERANCE and abs(overlapped_loss - loss) <= TOLERANCE * abs(loss)
    streams.use(equal)
    if equal:
        print_on_main(ranks, f"overlap_comm: on; the first step is the same without it (gradients within {error:.1%})")
    else:
        print_on_main(
            ranks,
            f"WARNING: overlap_comm: off, since the first step differs with it: loss {overlapped_loss:.6g} instead of "
            f"{loss:.6g}, gradients by up to {error:.1%}",
        )
    return equal


def gradient_norms(engine: Any, ranks: Ranks) -> torch.Tensor:
    """The norm of each trained parameter's accumulated gradient over all ranks, in float64. All ranks."""
    parameters = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    gradients = map(deepspeed.utils.safe_get_local_grad, parameters)
    squares = torch.stack([gradient.double().square().sum() for gradient in gradients])
    return sum_over_ranks(squares, ranks).sqrt()
