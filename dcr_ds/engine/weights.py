"""The trained weights of an engine, gathered one at a time, for export and snapshots."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.engine.distributed import Ranks, Value, decide_on_main, gather_objects, wait_until_visible
from dcr_ds.models.checkpoint_files import stored_dtypes
from dcr_ds.recipe import AlignSection, RefineSection


class RankProcesses:
    """The ranks of a run as the processes that write a model."""

    def __init__(self, ranks: Ranks):
        self.rank, self.world_size, self._ranks = ranks.rank, ranks.world_size, ranks

    def gather(self, value: Any) -> list[Any]:
        return gather_objects(value, self._ranks)

    def decide(self, decide: Callable[[], Value]) -> Value:
        return decide_on_main(decide, self._ranks)

    def wait_until_visible(self, folder: Path) -> None:
        wait_until_visible([folder, *folder.rglob("*")], self._ranks)


class TrainedWeights:
    """The trainable parameters of an engine, gathered when they are read.

    Attributes:
        shapes: of the parameters, without the prefix of their names.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, ranks: Ranks, masters: bool = True, prefix: str = ""):
        """
        Args:
            masters: in float32 where the optimizer keeps a copy in it; else in the dtype that the model computes in.
            prefix: prefix of the names in the engine, which is removed.
        """
        self.processes, self._masters = RankProcesses(ranks), masters
        named = engine.module.named_parameters()
        self._parameters = {name.removeprefix(prefix): value for name, value in named if value.requires_grad}
        self.shapes = {name: full_shape(parameter) for name, parameter in self._parameters.items()}

    def read(self, name: str, wanted: bool) -> torch.Tensor | None:
        """A parameter on the CPU where it is wanted. All ranks."""
        with whole_weight(self._parameters[name], self._masters) as weight:
            return weight.detach().to("cpu", copy=True) if wanted else None


def needs_masters(stage: RefineSection | AlignSection, source: Path) -> bool:
    """Return whether weights are exported from their float32 masters, as `dcr-ds export` reads them from a checkpoint.

    A source that is all in bfloat16 gets the same bytes without them, in half the memory.
    """
    return stage.adapter != "none" or stored_dtypes(source) != {"BF16"}


@contextmanager
def whole_weight(parameter: torch.nn.Parameter, masters: bool) -> Iterator[torch.Tensor]:
    """A parameter, not partitioned, or its float32 master if there is one. All ranks."""
    master = deepspeed.utils.safe_get_full_fp32_param(parameter) if masters else None
    partitioned = master is None and hasattr(parameter, "ds_id")
    with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
        yield parameter if master is None else master


def full_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of a parameter, also of one that ZeRO-3 has partitioned, whose own is empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
