"""Convert operations and bytes to seconds with stated rates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dcr_ds.plan.traffic import Collective


@dataclass(frozen=True)
class Rates:
    """Rates per GPU: dense bfloat16 operations per second, and bytes per second and direction within a node and beyond.

    Attributes:
        mfu: share of `flops` that is reached; recomputed activations count as work.
        share: share of the link rates that is reached.
        latency: seconds per collective and doubling of the ranks, independent of its size.
        storage: bytes per second that a node writes to shared storage.
    """

    flops: float
    node_link: float
    network: float
    mfu: float = 0.4
    share: float = 0.8
    latency: float = 10e-6
    storage: float = 2e9


# vendors' data sheets: dense bfloat16; NVLink per direction; one InfiniBand port per GPU (NDR 400, HDR 200 Gb/s)
GPUS = {
    "h100": Rates(989e12, 450e9, 50e9),
    "h200": Rates(989e12, 450e9, 50e9),
    "a100": Rates(312e12, 300e9, 25e9),
    "rtx4090": Rates(165e12, 32e9, 3e9),
}
MEMORY_GIB = {"h100": 80, "h200": 141, "a100": 80, "rtx4090": 24}


@dataclass(frozen=True)
class StepTime:
    """Seconds of computation and of communication in one step."""

    compute: float
    traffic: float

    @property
    def overlapped(self) -> float:
        """Computation and traffic fully overlapped: the lower bound."""
        return max(self.compute, self.traffic)

    @property
    def serial(self) -> float:
        """No overlap: the upper bound, which configurations with overlap_comm off approach."""
        return self.compute + self.traffic


def step_time(flops: int, collectives: Iterable[Collective], ranks: int, per_node: int, rates: Rates) -> StepTime:
    """The time of a step on `ranks` GPUs, with `per_node` GPUs per node."""
    traffic = 0.0
    for collective in collectives:
        link = rates.share * _link(collective, ranks, per_node, rates)
        traffic += collective.bytes / link + collective.calls * math.log2(collective.ranks or ranks) * rates.latency
    return StepTime(flops / (rates.flops * rates.mfu), traffic)


def _link(collective: Collective, ranks: int, per_node: int, rates: Rates) -> float:
    """Bytes per second at which each rank of a collective sends.

    NCCL divides a message among rings that leave a node through different GPUs, so that each link between nodes carries
    a part of it. With one rank of a node, it carries all of it.
    """
    if collective.across:
        return rates.network
    if (collective.ranks or ranks) <= per_node:
        return rates.node_link
    return min(rates.node_link, per_node * rates.network)
