"""A copy of the weights under training as they were at an earlier step, kept on the CPUs of all ranks.

Each trainable parameter is kept whole by one rank, in turn, so that memory and copying are spread evenly whatever the
ZeRO stage, and the files of a snapshot can be read by any number of ranks.
"""

from pathlib import Path

import torch
import torch.distributed
from safetensors import safe_open
from safetensors.torch import save_file

from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.engine.distributed import Ranks, barrier, gather_objects
from dcr_ds.engine.weights import RankProcesses, full_shape, whole_weight

PATTERN = "snapshot-*.safetensors"


class Snapshot:
    """Every method: all ranks."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, ranks: Ranks, masters: bool):
        """
        Args:
            masters: as for `TrainedWeights`.
        """
        self._ranks, self._masters = ranks, masters
        named = engine.module.named_parameters()
        self._trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self._weights: dict[str, torch.Tensor] = {}  # the part of this rank

    @property
    def num_bytes(self) -> int:
        """Bytes of the files of all ranks, at most."""
        least = torch.float32.itemsize if self._masters else 1
        return sum(
            full_shape(parameter).numel() * max(least, parameter.element_size()) for _, parameter in self._trained
        )

    def take(self) -> None:
        """Copy the current weights."""
        for index, (name, parameter) in enumerate(self._trained):
            with whole_weight(parameter, self._masters) as weight:
                if self._is_owner(index):
                    self._copy(name, weight)

    def write(self, folder: Path) -> None:
        """Write one file per rank into a folder."""
        save_file(self._weights, folder / PATTERN.replace("*", f"{self._ranks.rank:05d}"))
        barrier(self._ranks)

    def read(self, folder: Path) -> None:
        """Read what `write` wrote, under any number of ranks."""
        own = {name for index, (name, _) in enumerate(self._trained) if self._is_owner(index)}
        self._weights = {}
        for file in sorted(folder.glob(PATTERN)):
            with safe_open(file, "pt") as stream:
                # copies: tensors that are read stay mapped to a file that is removed with its checkpoint
                self._weights |= {name: stream.get_tensor(name).clone() for name in stream.keys() if name in own}
        if missing := own - self._weights.keys():
            raise RuntimeError(f"{folder}: the snapshot has no {sorted(missing)[0]}")

    def weights(self) -> "SnapshotWeights":
        """The weights, for an export."""
        own = {name: (weight.dtype, weight.shape) for name, weight in self._weights.items()}
        kept = {name: facts for owned in gather_objects(own, self._ranks) for name, facts in owned.items()}
        return SnapshotWeights(self._weights, {name: kept[name] for name, _ in self._trained}, self._ranks)

    def _is_owner(self, index: int) -> bool:
        return index % self._ranks.world_size == self._ranks.rank

    def _copy(self, name: str, weight: torch.Tensor) -> None:
        if name not in self._weights or self._weights[name].dtype != weight.dtype:
            self._weights[name] = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
        self._weights[name].copy_(weight.detach())


class SnapshotWeights:
    """Weights of a snapshot, each sent by the rank that keeps it when it is read."""

    def __init__(self, own: dict[str, torch.Tensor], kept: dict[str, tuple[torch.dtype, torch.Size]], ranks: Ranks):
        """
        Args:
            own: the weights that this rank keeps.
            kept: dtype and shape of all weights, in the order in which ranks keep them in turn.
        """
        self._own, self._dtypes, self._ranks = own, {name: dtype for name, (dtype, _) in kept.items()}, ranks
        self._owner = {name: index % ranks.world_size for index, name in enumerate(kept)}
        self.shapes = {name: shape for name, (_, shape) in kept.items()}
        self.processes = RankProcesses(ranks)

    def read(self, name: str, wanted: bool) -> torch.Tensor | None:
        """A weight on the CPU where it is wanted. All ranks."""
        if self._ranks.world_size == 1:
            return self._own[name] if wanted else None
        device = self._ranks.device
        if name in self._own:
            weight = self._own[name].to(device)
        else:
            weight = torch.empty(self.shapes[name], dtype=self._dtypes[name], device=device)
        torch.distributed.broadcast(weight, self._owner[name])
        return weight.cpu() if wanted else None
