"""Base weights in 4 bits: NF4 with double quantisation (QLoRA, arXiv 2305.14314), through bitsandbytes.

The linear layers are quantised while they are loaded, block by block; embeddings, norms and the head stay in the
training dtype (transformers computes norms in float32 whatever the dtype of their weights). Only adapters train.
"""

import importlib.metadata
from types import ModuleType
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from dcr_ds.errors import UserError

OLDEST = (0, 50)  # the first whose CPU kernels train a 4-bit model
EXTRA = "pip install 'dcr-ds[qlora]'"
BLOCK = 64  # weights per quantisation block, which share a scale
FUSED_EXPERTS = ("qwen3_moe", "mixtral")  # transformers stores their experts as one tensor instead of linear layers


def import_bitsandbytes(field: str) -> ModuleType:
    """Import bitsandbytes.

    Args:
        field: the field of the recipe that needs it.

    Raises:
        UserError: it is missing or too old.
    """
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{field}: needs bitsandbytes, which is not installed: {EXTRA}") from None
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise UserError(f"{field}: needs bitsandbytes {OLDEST[0]}.{OLDEST[1]} or newer, this is {version}: {EXTRA}")
    import bitsandbytes

    return bitsandbytes


def check_four_bit(model_type: str, device: torch.device) -> None:
    """Raise UserError unless a model of this type can be trained in 4 bits on this device; tries a few numbers."""
    if model_type in FUSED_EXPERTS:
        raise UserError(
            f"model.quantize: nf4 would not quantise the experts of {model_type}, which transformers stores as one "
            "tensor that bitsandbytes cannot quantise; set it to none"
        )
    functional = import_bitsandbytes("model.quantize").functional
    try:
        numbers = torch.linspace(-1, 1, 512, device=device).view(8, 64)
        functional.dequantize_4bit(*functional.quantize_4bit(numbers, compress_statistics=True, quant_type="nf4"))
    except Exception as error:  # a missing library raises different errors on different devices
        raise UserError(
            f"model.quantize: bitsandbytes cannot quantise on {device} ({' '.join(str(error).split())[:200]}); install "
            f"a build of it for this device ({EXTRA}), or set it to none"
        ) from None


def loading_options(quantize: str, dtype: torch.dtype | str, device: torch.device | None) -> dict[str, Any]:
    """Options of `from_pretrained` for `model.quantize`; a quantised model is loaded onto the device."""
    if quantize == "none":
        return {}
    import_bitsandbytes("model.quantize")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head"],  # transformers would look for the head, which a trunk does not have
    )
    return {"quantization_config": config, "device_map": {"": device}}


def finish_four_bit(model: PreTrainedModel) -> PreTrainedModel:
    """Finish a model that was loaded in 4 bits: the same results on every CPU, and no frozen weights in checkpoints.

    Raises:
        UserError: it is on a CPU, where bitsandbytes 0.50 dequantises layers wrongly unless their width is a multiple
            of 64.
    """
    linear = import_bitsandbytes("model.quantize").nn.Linear4bit
    for name, module in model.named_modules():
        if not isinstance(module, linear):
            continue
        if module.weight.device.type == "cpu" and module.in_features % BLOCK:
            raise UserError(
                f"model.quantize: nf4 on a CPU needs layer widths that are a multiple of {BLOCK}, and {name} is "
                f"{module.in_features} wide; use a GPU, or set it to none"
            )
        # otherwise, in eval mode on some CPUs, it permanently rounds its scales to bfloat16
        module.support_avx512bf16_for_cpu = False
    model.register_state_dict_post_hook(_drop_statistics)
    return model


def _drop_statistics(_: torch.nn.Module, state: dict[str, Any], *__: Any) -> None:
    """Remove the scales of 4-bit weights (`….weight.absmax` etc.), which are not parameters, from a state dict."""
    for name in [name for name in state if ".weight." in name]:
        del state[name]
