"""Read the trained weights from a DeepSpeed checkpoint, on a CPU in one process, for any ranks and ZeRO stage."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

WHOLE = "mp_rank_00_model_states.pt"


def consolidated_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the full trained parameters of a checkpoint by name; under ZeRO 1 to 3 the fp32 masters.

    DeepSpeed's files are pickles, which can run code: only load checkpoints of your own.
    """
    if not any(checkpoint.glob("*_optim_states.pt")):  # ZeRO-0: every rank has the full state
        return torch.load(checkpoint / WHOLE, map_location="cpu", weights_only=False, mmap=True)["module"]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it prints its progress
        return get_fp32_state_dict_from_zero_checkpoint(
            str(checkpoint.parent), tag=checkpoint.name, exclude_frozen_parameters=True
        )
