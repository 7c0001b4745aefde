"""Bytes that a rank sends in one step, by collective, as in DeepSpeed 0.19 and the kernels.

For a message of S bytes over R ranks, each rank of a ring sends S (R − 1) / R in an all-gather or reduce-scatter, and
twice that in an all-reduce. ZeRO-2 all-reduces its buckets (DeepSpeed's `use_multi_rank_bucket_allreduce`) in every
backward pass; ZeRO-0 and 1 do so once per step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dcr_ds.plan.states import Tensor, Zero


@dataclass(frozen=True)
class Collective:
    """One kind of collective: bytes that a rank sends per step, and number of calls."""

    name: str
    bytes: int
    calls: int


@dataclass(frozen=True)
class Passes:
    """Passes per step on one rank.

    Attributes:
        forward: without backward pass (the embeddings of stage 1 if it has several micro-batches).
        backward: with backward pass.
        recomputed: whether activations are recomputed in the backward pass.
    """

    forward: int
    backward: int
    recomputed: bool = False


def traffic(
    tensors: Sequence[Tensor],
    zero: Zero,
    ranks: int,
    passes: Passes,
    embeddings: int = 0,
    tail_has_no_backward: bool = False,
) -> list[Collective]:
    """The collectives of a step.

    Args:
        tail_has_no_backward: no gradient passes through frozen parameters, so they are gathered only in forward passes.
        embeddings: bytes of h of the contrastive batch over all ranks; 0 in stage 2.
    """
    if ranks == 1:
        return []
    ring = (ranks - 1) / ranks
    trained = [tensor for tensor in tensors if tensor.trains]
    gradients = sum(tensor.bytes for tensor in trained)
    if zero.stage == 3:
        sharded = [tensor for tensor in tensors if tensor.elements > zero.persistence]
        whole, width = sum(tensor.bytes for tensor in sharded), trained[0].width
        back = [tensor for tensor in sharded if tensor.trains or not tail_has_no_backward]
        again = max(0, sum(tensor.bytes for tensor in back) - round(zero.kept * width))
        if passes.recomputed:  # frozen parameters are released in between
            again += sum(tensor.bytes for tensor in back if tensor.in_block and not tensor.trains)
        calls = len(sharded)
        forward = passes.forward + passes.backward
        reduced = max(1, round(gradients / (width * zero.reduce_bucket)))
        collectives = [
            Collective("all-gather, forward", round(ring * whole * forward), calls * forward),
            Collective(
                "all-gather, backward",
                round(ring * again * passes.backward),
                len(back) * passes.backward,
            ),
            Collective("reduce-scatter", round(ring * gradients * passes.backward), reduced * passes.backward),
        ]
    else:
        times = passes.backward if zero.stage == 2 else 1
        buckets = max(1, round(gradients / (trained[0].width * zero.reduce_bucket)))
        collectives = [Collective("all-reduce of gradients", round(2 * ring * gradients * times), buckets * times)]
        if zero.stage:
            collectives.append(Collective("all-gather of parameters", round(ring * gradients), buckets))
    if embeddings:
        collectives.append(Collective("contrastive all-gather", round(ring * embeddings), 1))
    return collectives
