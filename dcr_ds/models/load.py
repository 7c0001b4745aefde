"""Load whole models, with the attention kernel and precision resolved."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from dcr_ds.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_attention(attention: str, dtype: str, device: torch.device) -> tuple[str, str]:
    """The attention kernel for `auto`, and the reason in a few words.

    Raises:
        UserError: flash_attention_2 was asked for and cannot work here.
    """
    hindrance = _flash_hindrance(dtype, device)
    if attention == "flash_attention_2" and hindrance:
        raise UserError(f"model.attention: flash_attention_2 cannot be used: {hindrance}; say auto or sdpa")
    if attention != "auto":
        return attention, "as asked"
    return ("sdpa", hindrance) if hindrance else ("flash_attention_2", "flash-attn is installed")


def _flash_hindrance(dtype: str, device: torch.device) -> str:
    if device.type != "cuda":
        return "no GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than Ampere"
    if dtype != "bfloat16":
        return "float32 training"
    if not is_flash_attn_2_available():
        return "flash-attn is not installed (pip install 'dcr-ds[flash]')"
    return ""


def load_causal_lm(folder: Path, dtype: torch.dtype, attention: str, device: torch.device | None) -> PreTrainedModel:
    """Load a whole causal language model in eval mode on one device; None leaves it where it was loaded.

    Under ZeRO-3 (a live HfDeepSpeedConfig) transformers partitions the parameters as it loads them.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
    return model if device is None else model.to(device)
