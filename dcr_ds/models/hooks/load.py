"""Load a model with what belongs to it: an adapter, which is merged, and the hook of a baseline folder."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dcr_ds.errors import UserError
from dcr_ds.models.checkpoint_files import BASELINE_RECORD
from dcr_ds.models.hooks.context import ATTRIBUTE, Hook
from dcr_ds.models.hooks.knob import Knob, KnobSettings
from dcr_ds.models.hooks.record import VECTORS, BaselineRecord, read_record
from dcr_ds.models.hooks.scans import Scans, ScansSettings
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.merge import load_with_adapter


def load_model(
    source: Path,
    adapter: Path | None,
    hook: Path | None,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
) -> PreTrainedModel:
    """A whole causal language model in eval mode.

    Args:
        adapter: in peft's format; merged into the source.
        hook: a baseline folder; the model is then used inside of `answering`.

    Raises:
        UserError: the adapter or the baseline is damaged, or does not fit the source.
    """
    if adapter is None:
        model = load_causal_lm(source, dtype, attention, device)
    else:
        model = load_with_adapter(source, adapter, dtype, attention, device)
    if hook is not None:
        install(model, hook)
    return model


def install(model, folder: Path) -> None:
    """Install the hook of a baseline folder in its source model, which must not have one yet."""
    record = read_record(folder)
    try:
        setattr(model, ATTRIBUTE, _hook(model, folder, record))
    except (TypeError, ValueError, LookupError, AttributeError, OSError, SafetensorError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{folder}: a damaged baseline ({reason}); make it again") from None


def _hook(model, folder: Path, record: BaselineRecord) -> Hook:
    if not math.isfinite(record.settings["strength"]):
        raise UserError(f"{folder / BASELINE_RECORD}: strength is not a finite number; make the baseline again")
    if record.baseline == "knob":
        return Knob(model, KnobSettings(**record.settings))
    if record.baseline == "scans":
        return Scans(model, ScansSettings(**record.settings), load_file(folder / VECTORS))
    raise UserError(
        f"{folder / BASELINE_RECORD}: unknown baseline {record.baseline!r}; it was written by another version"
    )
