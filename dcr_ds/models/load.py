"""Load whole causal language models, and resolve the attention kernel."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import is_flash_attn_2_available

from dcr_ds.errors import UserError
from dcr_ds.models.four_bit import finish_four_bit, loading_options
from dcr_ds.models.packed_masks import separate_packed_rows
from dcr_ds.progress import heartbeat_while_moving

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NO_GPU = "no GPU"
FLASH_ATTN = "2.7"
RANDOM = re.compile("dropout|pdrop$|jitter")  # in the name of a field of a config
CAPPED = ("gemma2",)  # their capped attention logits need flash-attn or eager


def resolve_attention(attention: str, model_type: str, dtype: str, problem: str) -> tuple[str, str]:
    """The attention kernel for `auto`, and the reason in a few words.

    Args:
        problem: why flash-attn cannot be used on this machine; "" if it can.

    Raises:
        UserError: the kernel asked for cannot work here.
    """
    if dtype != "bfloat16" and problem != NO_GPU:
        problem = "float32 training"
    problem = problem or _flash_problem(model_type)
    sdpa_problem = _sdpa_problem(model_type)
    if attention == "flash_attention_2" and problem:
        raise UserError(f"model.attention: flash_attention_2 cannot be used: {problem}; say auto or sdpa")
    if attention == "sdpa" and sdpa_problem:
        raise UserError(f"model.attention: {model_type} {sdpa_problem}; say auto or eager")
    if attention != "auto":
        return attention, "as asked"
    if not problem:
        return "flash_attention_2", "flash-attn is installed"
    if sdpa_problem:
        return "eager", f"{problem} for flash-attn, and {model_type} {sdpa_problem}"
    return "sdpa", problem


def _sdpa_problem(model_type: str) -> str:
    """Why an architecture cannot use sdpa; "" if it can."""
    if model_type in CAPPED:
        return "caps its attention logits, which sdpa cannot"
    return "" if getattr(_class_of(model_type), "_supports_sdpa", True) else "has attention that sdpa cannot compute"


def _flash_problem(model_type: str) -> str:
    """Why an architecture cannot use flash_attention_2 whatever the machine; "" if it can."""
    model_class = _class_of(model_type)
    compatible = getattr(model_class, "_compatible_flash_implementations", None)
    is_excluded = compatible is not None and "flash_attention_2" not in compatible
    supports = getattr(model_class, "_supports_flash_attn", True) and not is_excluded
    return "" if supports else f"{model_type} does not support it"


def _class_of(model_type: str) -> Any:
    """The class of causal language models of an architecture; None: transformers has none."""
    known = model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING
    return MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]] if known else None


def flash_attention_problem(device: torch.device) -> str:
    """Return why flash-attn cannot be used on a device for training in bfloat16; "" if it can."""
    if device.type != "cuda":
        return NO_GPU
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than Ampere"
    return _flash_attn_missing()


def _flash_attn_missing() -> str:
    """Why the package flash-attn cannot be used, "" where it can."""
    install = f"pip install -U 'flash-attn>={FLASH_ATTN}' --no-build-isolation"
    try:
        version = importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return f"flash-attn is not installed ({install})"
    if Version(version) < Version(FLASH_ATTN):
        return f"flash-attn {version} is too old ({install})"
    return "" if is_flash_attn_2_available() else f"flash-attn {version} does not work with this transformers"


def config_without_noise(folder: Path) -> PreTrainedConfig:
    """The config of a checkpoint without dropout or noise: gradients depend neither on ranks nor on micro-batches.

    Dropout of adapters is a field of the recipe.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for name, value in config.to_dict().items():
        if RANDOM.search(name) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def load_causal_lm(
    folder: Path, dtype: torch.dtype | str, attention: str, device: torch.device | None, quantize: str = "none"
) -> PreTrainedModel:
    """Load a whole causal language model in eval mode on one device; None: where transformers loads it.

    It has no dropout in training mode either.

    Under ZeRO-3 (a live HfDeepSpeedConfig) transformers partitions the parameters as it loads them.

    Args:
        dtype: "auto": that of the checkpoint.
        quantize: `nf4` loads the linear layers except the head in 4 bits, and needs a device.
    """
    options = loading_options(folder, quantize, dtype, device)
    with heartbeat_while_moving(f"loading {folder}"):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config_without_noise(folder),
            dtype=dtype,
            attn_implementation=attention,
            **options,
            trust_remote_code=False,
        ).eval()
    separate_packed_rows(model)
    if quantize != "none":
        return finish_four_bit(model, device or torch.device("cpu"))
    return model if device is None else model.to(device)
