"""Seconds from operations and bytes, by stated rates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dcr_ds.plan.traffic import Collective


@dataclass(frozen=True)
class Rates:
    """Per GPU: dense bfloat16 operations a second, and bytes a second in one direction to GPUs of its node and beyond.

    Attributes:
        mfu: share of `flops` that is reached, recomputed activations counted as work.
        share: share of the link rates that is reached.
        latency: seconds that a collective takes however small, for each doubling of the ranks.
        storage: bytes a second that a node writes to shared storage.
    """

    flops: float
    node_link: float
    network: float
    mfu: float = 0.4
    share: float = 0.8
    latency: float = 10e-6
    storage: float = 2e9


# the makers' data sheets: dense bfloat16; NVLink in one direction; a port of InfiniBand a GPU (NDR 400, HDR 200 Gb/s)
GPUS = {
    "h100": Rates(989e12, 450e9, 50e9),
    "h200": Rates(989e12, 450e9, 50e9),
    "a100": Rates(312e12, 300e9, 25e9),
    "rtx4090": Rates(165e12, 32e9, 3e9),
}
MEMORY_GIB = {"h100": 80, "h200": 141, "a100": 80, "rtx4090": 24}


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: computing, and sending where nothing overlaps with computing."""

    compute: float
    traffic: float

    @property
    def overlapped(self) -> float:
        """All of the traffic behind the computation, or the other way round: the least."""
        return max(self.compute, self.traffic)

    @property
    def serial(self) -> float:
        """Nothing overlaps: the most, and what ds_configs/ with overlap_comm off comes near."""
        return self.compute + self.traffic


def step_time(flops: int, collectives: Iterable[Collective], ranks: int, per_node: int, rates: Rates) -> StepTime:
    """The time of a step on one of `ranks` GPUs, `per_node` to a node.

    A ring goes through every node, so that beyond one node the network bounds it.
    """
    link = rates.share * (rates.node_link if ranks <= per_node else rates.network)
    waits = math.log2(ranks) * rates.latency if ranks > 1 else 0.0
    traffic = sum(one.bytes / link + one.calls * waits for one in collectives)
    return StepTime(flops / (rates.flops * rates.mfu), traffic)
