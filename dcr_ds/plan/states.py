"""Memory that DeepSpeed 0.19 holds per rank for a model, between and during steps.

Checked against real tensors on 1, 2 and 4 ranks (tests/plan/). In bytes, with b bytes per element in training (2 in
bfloat16, 4 in float32), n trainable parameters and R ranks:

    stage   parameters      masters   moments   gradients   additionally in the optimizer step
    0       b n             4 n *     8 n       b n         4 n *
    1       b n             4 n/R     8 n/R     b n         gradients flattened and in float32
    2       b n             4 n/R     8 n/R     b n/R       the same
    3       b n/R           4 n/R     8 n/R     b n/R       the same, a sub-group at a time

    * only in bfloat16. ZeRO keeps masters in float32 training, too. Only stage 3 shards frozen parameters.

hpZ keeps a copy of the parameters in addition, b n / (ranks of a node).

Moments are those of torch's AdamW; in 8 bits they take 1 + 1/64 bytes each, and `paged_` ones are in host memory at
worst.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dcr_ds.engine.zero3 import resolve_overlap

MASTER, MOMENTS = 4, 8  # bytes per element: a float32 copy; both moments of AdamW in float32
EIGHT_BIT = 2 + 2 * 4 / 256  # both moments, a byte each, with a float32 scale per 256
ALLREDUCE_BUCKET = 500_000_000  # elements per all-reduce of DeepSpeed without ZeRO, in the optimizer step
SMALL = 4096  # bitsandbytes keeps the state of smaller tensors in 32 bits
DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "zero_hpz_partition_size": 1,
}


@dataclass(frozen=True)
class Tensor:
    """A parameter.

    Attributes:
        width: bytes per element, below 1 if quantised.
        in_block: whether it belongs to a block, not to embeddings, final norm or head.
    """

    elements: int
    trains: bool
    width: float
    in_block: bool = False

    @property
    def bytes(self) -> int:
        return round(self.elements * self.width)


@dataclass(frozen=True)
class Zero:
    """The fields of zero_optimization in a DeepSpeed configuration that a plan needs.

    Attributes:
        overlap: whether traffic overlaps with computation; for "auto", if the first step passes its check.
        partition: ranks of a secondary partition (hpZ); 1: there is none.
    """

    stage: int
    reduce_bucket: int
    sub_group: int
    prefetch_bucket: int
    persistence: int
    max_live: int
    max_reuse: int
    offload_optimizer: bool
    offload_param: bool
    overlap: bool = False
    partition: int = 1
    quantised_weights: bool = False
    quantised_gradients: bool = False

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Zero":
        section = config.get("zero_optimization") or {}
        overlap = resolve_overlap(section, world_size=2, on_gpu=True)
        section = DEFAULTS | {name: value for name, value in section.items() if value != "auto"}
        return cls(
            stage=section.get("stage", 0),
            reduce_bucket=int(section["reduce_bucket_size"]),
            sub_group=int(section["sub_group_size"]),
            prefetch_bucket=int(section["stage3_prefetch_bucket_size"]),
            persistence=int(section["stage3_param_persistence_threshold"]),
            max_live=int(section["stage3_max_live_parameters"]),
            max_reuse=int(section["stage3_max_reuse_distance"]),
            offload_optimizer=bool(section.get("offload_optimizer")),
            offload_param=bool(section.get("offload_param")),
            overlap=overlap,
            partition=section["zero_hpz_partition_size"],
            quantised_weights=bool(section.get("zero_quantized_weights")),
            quantised_gradients=bool(section.get("zero_quantized_gradients")),
        )

    @property
    def name(self) -> str:
        """The stage and its options, for tables."""
        options = {
            "hpZ": self.partition > 1,
            "quantised": self.quantised_weights or self.quantised_gradients,
            "offload": self.offload_optimizer,
        }
        return " ".join([f"ZeRO-{self.stage}", *(name for name, used in options.items() if used)])

    @property
    def kept(self) -> int:
        """Elements that stage 3 keeps gathered between forward and backward pass, since they are reused soon."""
        return self.max_reuse // 2

    def without_reuse(self) -> "Zero":
        """The behaviour if the first pass of a run has no gradients.

        DeepSpeed 0.19 traces the first pass and caches which parameters it releases (`__params_to_release`).
        """
        return replace(self, max_reuse=0)


@dataclass(frozen=True)
class States:
    """Bytes on the rank with the most.

    Attributes:
        parameters: those of the rank, whole or sharded.
        gathered: whole parameters under ZeRO-3 at the peak.
        masters, moments: float32 copies and the state of AdamW.
        gradients: those of a whole backward pass.
        buckets: buffers of the reduction of gradients.
        step: additional memory of the optimizer step, besides resident states and gradients.
        host: bytes in host memory instead, not included in the other fields.
        secondary: the copy of the parameters that hpZ keeps, sharded within a node.
    """

    parameters: int
    gathered: int
    masters: int
    moments: int
    gradients: int
    buckets: int
    step: int
    host: int = 0
    secondary: int = 0

    @property
    def resident(self) -> int:
        """Bytes between two steps, without gathered parameters."""
        return self.parameters + self.secondary + self.masters + self.moments


def saved_bytes(elements: int, width: int, zero_stage: int, optimizer: str) -> int:
    """Bytes of a checkpoint over all ranks: masters and moments of what trains, and except under ZeRO-3 its weights."""
    masters = MASTER if zero_stage or width < MASTER else 0
    moments = EIGHT_BIT if optimizer.endswith("8bit") else MOMENTS
    return int(elements * ((0 if zero_stage == 3 else width) + masters + moments))


def states(tensors: Sequence[Tensor], zero: Zero, ranks: int, on_gpu: bool, optimizer: str = "adamw") -> States:
    """The states of a model on the rank with the most bytes."""
    state = _with_adamw(tensors, zero, ranks)
    if optimizer == "adamw" or zero.offload_optimizer:
        return state
    trained = [tensor.elements for tensor in tensors if tensor.trains]
    sizes = trained if zero.stage == 0 else [state.masters // MASTER]
    moments = state.moments
    if optimizer.endswith("8bit"):
        moments = int(sum(size * (MOMENTS if size < SMALL else EIGHT_BIT) for size in sizes))
    paged = on_gpu and optimizer.startswith("paged")
    return replace(state, moments=0 if paged else moments, host=state.host + (moments if paged else 0))


def _with_adamw(tensors: Sequence[Tensor], zero: Zero, ranks: int) -> States:
    trained = [tensor for tensor in tensors if tensor.trains]
    elements = sum(tensor.elements for tensor in trained)
    width = int(trained[0].width)
    bucket = min(zero.reduce_bucket, elements) * width
    if zero.stage == 0:
        converted = MASTER * elements if width < MASTER else 0
        return States(
            parameters=sum(tensor.bytes for tensor in tensors),
            gathered=0,
            masters=converted,
            moments=MOMENTS * elements,
            gradients=width * elements,
            buckets=0,
            step=max(converted, width * min(ALLREDUCE_BUCKET, elements)),  # gradients are flattened, even on one rank
        )
    if zero.stage == 3:
        return _stage_3(tensors, zero, ranks)
    shard = flat_shard(elements, ranks)
    frozen = sum(tensor.bytes for tensor in tensors if not tensor.trains)
    gradients = width * elements
    if zero.stage == 2:
        gradients = width * max(owned_elements([tensor.elements for tensor in trained], ranks))
    full = States(
        parameters=frozen + width * shard * ranks,
        gathered=0,
        masters=MASTER * shard,
        moments=MOMENTS * shard,
        gradients=gradients,
        buckets=zero.reduce_bucket * width + (bucket if ranks > 1 else 0),
        step=_flat_step(shard, width) - (gradients if zero.stage == 2 else 0),
    )
    return _offloaded(full, zero)


def _stage_3(tensors: Sequence[Tensor], zero: Zero, ranks: int) -> States:
    trained = [tensor for tensor in tensors if tensor.trains]
    width = int(trained[0].width)
    shard = sum(sharded(tensor.elements, ranks) for tensor in trained)
    own = sum(round(sharded(tensor.elements, ranks) * tensor.width) for tensor in tensors)
    group = min(shard, max(zero.sub_group, max(sharded(tensor.elements, ranks) for tensor in trained)))
    full = States(
        parameters=own,
        gathered=gathered_elements([tensor.elements for tensor in tensors], zero) * width if ranks > 1 else 0,
        masters=MASTER * shard,
        moments=MOMENTS * shard,
        gradients=width * shard,
        buckets=zero.reduce_bucket * width + (min(zero.reduce_bucket, sum(t.elements for t in trained)) * width),
        step=MASTER * group + (width * group if width < MASTER else 0),
    )
    secondary = sum(round(sharded(tensor.elements, zero.partition) * tensor.width) for tensor in tensors)
    return replace(_offloaded(full, zero), secondary=secondary if zero.partition > 1 else 0)


def _flat_step(shard: int, width: int) -> int:
    """The optimizer step on a flat shard: its gradients, flattened and in float32. A fused AdamW makes no copies."""
    return 2 * width * shard + (MASTER * shard if width < MASTER else 0)


def _offloaded(states: States, zero: Zero) -> States:
    """Masters, moments and gradients of the step in host memory; with offload_param also the shards."""
    if not zero.offload_optimizer:
        return states
    moved = states.masters + states.moments + states.step
    parameters = 0 if zero.offload_param else states.parameters
    moved += states.parameters - parameters
    return States(parameters, states.gathered, 0, 0, states.gradients, states.buckets, 0, host=moved)


def flat_shard(elements: int, ranks: int) -> int:
    """Elements per rank of the flat trainable parameters in stages 1 and 2, padded to a multiple of two."""
    return 2 * -(-elements // (2 * ranks))


def owned_elements(sizes: Iterable[int], ranks: int) -> list[int]:
    """Per rank the elements of all parameters that its flat share overlaps; stage 2 keeps their whole gradients."""
    sizes = list(sizes)
    shard = flat_shard(sum(sizes), ranks)
    owned, start = [0] * ranks, 0
    for size in sizes:
        for rank in range(start // shard, (start + size - 1) // shard + 1):
            owned[rank] += size
        start += size
    return owned


def sharded(elements: int, ranks: int) -> int:
    """Elements per rank of one parameter under ZeRO-3."""
    return -(-elements // ranks)


def gathered_elements(sizes: Sequence[int], zero: Zero) -> int:
    """Elements of whole parameters on a rank under ZeRO-3 at the peak, between forward and backward pass.

    These are parameters below the persistence threshold, always; those reused in the backward pass soon enough not to
    be released (the distance counts forward and backward); the one in use, and the prefetched ones.
    """
    persistent = sum(size for size in sizes if size <= zero.persistence)
    others = [size for size in sizes if size > zero.persistence]
    if not others:
        return persistent
    near = min(sum(others), zero.kept)
    ahead = min(zero.prefetch_bucket, zero.max_live) + max(others)
    return persistent + min(sum(others), near + ahead)
