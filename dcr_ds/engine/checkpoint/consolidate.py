"""Read the trained weights from a DeepSpeed checkpoint, on a CPU in one process, for any ranks and ZeRO stage."""

from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.models.splice import ALONE

WHOLE = "mp_rank_00_model_states.pt"


class CheckpointWeights:
    """Trained parameters in a checkpoint, combined from its shards when they are read; see `Weights` in models.

    Under ZeRO 1 to 3 they are the fp32 masters. The files are mapped, not loaded. DeepSpeed's files are pickles, which
    can run code: only read checkpoints of your own.
    """

    processes = ALONE

    def __init__(self, checkpoint: Path, names: Iterable[str], prefix: str):
        """
        Args:
            names: the parameters; those that the checkpoint does not hold are left out.
            prefix: what the checkpoint has before their names.
        """
        saved = _saved(checkpoint)
        self._saved = {name: saved[prefix + name] for name in names if prefix + name in saved}
        self.shapes = {name: torch.Size(weight.shape) for name, weight in self._saved.items()}

    def read(self, name: str, wanted: bool) -> torch.Tensor | None:
        return self._saved[name].contiguous() if wanted else None


def _saved(checkpoint: Path) -> dict[str, Any]:
    """Tensors, or DeepSpeed's stand-ins for tensors in several shards, by name."""
    if not any(checkpoint.glob("*_optim_states.pt")):  # ZeRO-0: every rank has the full state
        return torch.load(checkpoint / WHOLE, map_location="cpu", weights_only=False, mmap=True)["module"]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it prints its progress
        return deepspeed.utils.zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(
            str(checkpoint.parent), tag=checkpoint.name, exclude_frozen_parameters=True, lazy_mode=True
        )
