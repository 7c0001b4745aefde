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
    """One kind of collective: bytes that a rank sends per step, and number of calls.

    Attributes:
        ranks: that take part; 0: all of them.
        across: whether they are one rank of each node.
    """

    name: str
    bytes: int
    calls: int
    ranks: int = 0
    across: bool = False


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
        gathers = _gathers(tensors, zero, ranks, passes, tail_has_no_backward)
        collectives = [*gathers, *_reductions(gradients, trained[0].width, zero, ranks, passes)]
    else:
        times = passes.backward if zero.stage == 2 else 1
        buckets = max(1, round(gradients / (trained[0].width * zero.reduce_bucket)))
        collectives = [Collective("all-reduce of gradients", round(2 * ring * gradients * times), buckets * times)]
        if zero.stage:
            collectives.append(Collective("all-gather of parameters", round(ring * gradients), buckets))
    if embeddings:
        collectives.append(Collective("contrastive all-gather", round(ring * embeddings), 1))
    return collectives


def _gathers(
    tensors: Sequence[Tensor], zero: Zero, ranks: int, passes: Passes, tail_has_no_backward: bool
) -> list[Collective]:
    """The gathers of parameters under ZeRO-3.

    With hpZ only the first pass of a step gathers what was trained from all ranks; the other passes gather the
    secondary partition of a node. Frozen parameters keep it from the start.
    """
    sharded = [tensor for tensor in tensors if tensor.elements > zero.persistence]
    trained = [tensor for tensor in sharded if tensor.trains]
    back = [tensor for tensor in sharded if tensor.trains or not tail_has_no_backward]
    width = next(tensor.width for tensor in tensors if tensor.trains)
    sent = 1 / width if zero.quantised_weights else 1.0  # a byte per weight

    def size(of: Sequence[Tensor]) -> float:
        return sent * sum(tensor.bytes for tensor in of)

    again = max(0.0, size(back) - round(zero.kept * width * sent))
    if passes.recomputed:  # frozen parameters are released in between
        again += size([tensor for tensor in back if tensor.in_block and not tensor.trains])
    forward = passes.forward + passes.backward
    backward_calls = len(back) * passes.backward
    everywhere = (ranks - 1) / ranks
    if not 1 < zero.partition < ranks:
        return [
            Collective("all-gather, forward", round(everywhere * size(sharded) * forward), len(sharded) * forward),
            Collective("all-gather, backward", round(everywhere * again * passes.backward), backward_calls),
        ]
    within = (zero.partition - 1) / zero.partition
    inside = size(sharded) * forward - size(trained)
    calls = len(sharded) * forward - len(trained)
    return [
        Collective("all-gather, forward", round(everywhere * size(trained)), len(trained)),
        Collective("all-gather, forward", round(within * inside), calls, zero.partition),
        Collective("all-gather, backward", round(within * again * passes.backward), backward_calls, zero.partition),
    ]


def _reductions(gradients: int, width: float, zero: Zero, ranks: int, passes: Passes) -> list[Collective]:
    """The reductions of gradients under ZeRO-3; quantised to 4 bits, first within a node, then between nodes.

    On one node DeepSpeed does not quantise them.
    """
    calls = max(1, round(gradients / (width * zero.reduce_bucket))) * passes.backward
    if not zero.quantised_gradients or not 1 < zero.partition < ranks:
        return [Collective("reduce-scatter", round((ranks - 1) / ranks * gradients * passes.backward), calls)]
    size, nodes = gradients / width / 2 * passes.backward, ranks // zero.partition
    within = (zero.partition - 1) / zero.partition * size
    between = (nodes - 1) / nodes * size / zero.partition
    return [
        Collective("reduce-scatter", round(within), calls, zero.partition),
        Collective("reduce-scatter", round(between), calls, nodes, across=True),
    ]
