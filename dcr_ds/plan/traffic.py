"""What a rank sends the others in one step, by collective, as DeepSpeed 0.19 and the kernels do it.

Of a message of S bytes over R ranks, a rank of a ring sends S (R − 1) / R for an all-gather or a reduce-scatter, and
twice that for an all-reduce. ZeRO-2 all-reduces its buckets (DeepSpeed's `use_multi_rank_bucket_allreduce`), in every
backward pass; ZeRO-0 and 1 do it once a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dcr_ds.plan.states import Tensor, Zero


@dataclass(frozen=True)
class Collective:
    """One kind of message: the bytes that a rank sends in a step, and in how many calls."""

    name: str
    bytes: int
    calls: int


@dataclass(frozen=True)
class Passes:
    """Passes of a step on one rank: forward alone (stage 1's embeddings, where there are several micro-batches), and
    forward with backward, in which the activations of frozen blocks may be recomputed."""

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
        tail_has_no_backward: no gradient goes through what is frozen: it is gathered in the forward pass alone.
        embeddings: bytes of the contrastive batch's h over all ranks; 0 in stage 2.
    """
    if ranks == 1:
        return []
    ring = (ranks - 1) / ranks
    trained = [tensor for tensor in tensors if tensor.trains]
    gradients = sum(tensor.bytes for tensor in trained)
    found = []
    if zero.stage == 3:
        sharded = [tensor for tensor in tensors if tensor.elements > zero.persistence]
        whole, width = sum(tensor.bytes for tensor in sharded), trained[0].width
        back = [tensor for tensor in sharded if tensor.trains or not tail_has_no_backward]
        again = max(0, sum(tensor.bytes for tensor in back) - round(zero.kept * width))
        if passes.recomputed:  # what does not train is released in between
            again += sum(tensor.bytes for tensor in back if tensor.in_block and not tensor.trains)
        calls = len(sharded)
        forward = passes.forward + passes.backward
        reduced = max(1, round(gradients / (width * zero.reduce_bucket)))
        found = [
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
        found = [Collective("all-reduce of gradients", round(2 * ring * gradients * times), buckets * times)]
        if zero.stage:
            found.append(Collective("all-gather of parameters", round(ring * gradients), buckets))
    if embeddings:
        found.append(Collective("contrastive all-gather", round(ring * embeddings), 1))
    return found
