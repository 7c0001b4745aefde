"""The options of `dcr-ds plan`, and the cluster that they describe."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dcr_ds.errors import UserError
from dcr_ds.plan.clock import GPUS, MEMORY_GIB, Rates
from dcr_ds.plan.measure import Calibration
from dcr_ds.recipe import Recipe

if TYPE_CHECKING:
    from dcr_ds.plan.choose import Cluster

MEAN_TOKENS = {"refine": 64, "align": 256}


@dataclass(frozen=True)
class PlanOptions:
    """The options of a plan. None: the value for the kind of GPU, or derived from the recipe."""

    gpus: int = 1
    gpu: str = "h100"
    gpu_memory: float | None = None  # GiB
    nodes: tuple[int, ...] = ()  # several: compare node counts
    gpus_per_node: int = 8
    rows_per_gpu: int = 8  # when node counts are compared
    mfu: float | None = None
    link_share: float | None = None
    node_link: float | None = None  # GB/s
    network: float | None = None  # GB/s
    storage: float | None = None  # GB/s
    reserve: float = 0.1
    refine_tokens: int | None = None
    align_tokens: int | None = None
    steps: int | None = None

    @property
    def total_gpus(self) -> int:
        """GPUs of the plan; those of the first node count when several are compared."""
        return self.nodes[0] * self.gpus_per_node if self.nodes else self.gpus

    def mean_tokens(self, recipe: Recipe) -> dict[str, int]:
        """Mean tokens per row of each stage, at most max_length.

        Raises:
            UserError: an option is above max_length.
        """
        tokens = {}
        for stage, usual in MEAN_TOKENS.items():
            longest, chosen = getattr(recipe, stage).max_length, getattr(self, f"{stage}_tokens")
            if chosen and chosen > longest:
                raise UserError(
                    f"dcr-ds plan: --{stage}-tokens: {chosen} is above {stage}.max_length = {longest}; training "
                    "skips longer rows"
                )
            tokens[stage] = chosen or min(usual, longest)
        return tokens

    def cluster(self, gpus: int, stage: str, measured: Mapping[str, Calibration]) -> "Cluster":
        """What a stage is planned for: as described by the options, or as measured on this device."""
        from dcr_ds.plan.choose import Cluster

        rates, per_node = self._rates(), min(gpus, self.gpus_per_node)
        if stage not in measured:
            return Cluster(gpus, per_node, self.gpu_memory or MEMORY_GIB[self.gpu], rates, self.reserve)
        calibration = measured[stage]
        sharing = 1 if calibration.on_gpu else per_node  # ranks share the CPU that the measured process had for itself
        rates = replace(rates, flops=calibration.flops / sharing, mfu=1.0)
        memory = self.gpu_memory or calibration.memory_gib / sharing
        return Cluster(gpus, per_node, memory, rates, self.reserve, calibration.on_gpu, calibration.memory_factor)

    def _rates(self) -> Rates:
        changes = {
            "mfu": self.mfu,
            "share": self.link_share,
            "node_link": self.node_link and 1e9 * self.node_link,
            "network": self.network and 1e9 * self.network,
            "storage": self.storage and 1e9 * self.storage,
        }
        return replace(GPUS[self.gpu], **{name: value for name, value in changes.items() if value is not None})
