"""Base weights in 4 bits: NF4 with double quantisation (QLoRA, arXiv 2305.14314), through bitsandbytes.

The linear layers are quantised while they are loaded, block by block; embeddings, norms and the head stay in the
training dtype (transformers computes norms in float32 whatever the dtype of their weights). Only adapters train.
"""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from dcr_ds.errors import UserError, one_line
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.experts import expert_tensors, has_experts

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora.layer import ParamWrapper

OLDEST = (0, 50)  # the first whose CPU kernels train a 4-bit model
EXTRA = "pip install 'dcr-ds[qlora]'"
BLOCK = 64  # weights per quantisation block, which share a scale
ROUTERS = ["shared_expert_gate"]  # linear layers of one output that stay in 16 bits


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


def check_four_bit(device: torch.device) -> None:
    """Raise UserError unless a model can be trained in 4 bits on this device; tries a few numbers."""
    functional = import_bitsandbytes("model.quantize").functional
    try:
        numbers = torch.linspace(-1, 1, 512, device=device).view(8, 64)
        functional.dequantize_4bit(*functional.quantize_4bit(numbers, compress_statistics=True, quant_type="nf4"))
    except Exception as error:  # a missing library raises different errors on different devices
        raise UserError(
            f"model.quantize: bitsandbytes cannot quantise on {device} ({one_line(error)}); install "
            f"a build of it for this device ({EXTRA}), or set it to none"
        ) from None


def loading_options(
    folder: Path, quantize: str, dtype: torch.dtype | str, device: torch.device | None
) -> dict[str, Any]:
    """Options of `from_pretrained` for `model.quantize`.

    A quantised model is loaded onto the device; one with experts into main memory, since these are quantised afterwards
    and need not fit the device in 16 bits.
    """
    if quantize == "none":
        return {}
    import_bitsandbytes("model.quantize")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # transformers would look for the head, which a trunk does not have
        llm_int8_skip_modules=["lm_head", *ROUTERS],
    )
    return {"quantization_config": config, "device_map": {"": "cpu" if has_experts(model_config(folder)) else device}}


def finish_four_bit(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Finish a model that was loaded in 4 bits: experts, the same results on every CPU, and small checkpoints.

    transformers has the experts of a block as two tensors instead of linear layers, which it does not quantise.

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
    for _, holder, name in list(expert_tensors(model)):
        _quantise_tensor(holder, name, device)
    model.register_state_dict_post_hook(_drop_statistics)
    if model.device != device:
        model.to(device)  # type: ignore[arg-type]
    return model


def _quantise_tensor(holder: torch.nn.Module, name: str, device: torch.device) -> None:
    """Replace the experts of a block by 4-bit ones, which are dequantised in each forward pass."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    tensor = getattr(holder, name)
    if tensor.shape[-1] % BLOCK and device.type == "cpu":
        raise UserError(
            f"model.quantize: nf4 on a CPU needs layer widths that are a multiple of {BLOCK}, and {name} of the "
            f"experts is {tensor.shape[-1]} wide; use a GPU, or set it to none"
        )
    tensor.data = tensor.data.to(device)
    replace_parameter_4bit(holder, name, compress_statistics=True, quant_type="nf4", blocksize=BLOCK)


class _AddProduct(torch.nn.Module):
    """Adds an adapter's product to the weights of experts [E, out, in]."""

    def __init__(self, left: torch.Tensor, right: torch.Tensor, scale: float):
        super().__init__()
        self.left, self.right, self.scale = left, right, scale

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(weight, self.left, self.right, alpha=self.scale)


def adapt_four_bit_experts(model: "PeftModel") -> None:
    """Correct peft's adapters on 4-bit experts (as of 0.21), which are dequantised when they are read.

    peft reads a tensor for its dtype while dequantised tensors are cached, so that the cache would hold it without the
    adapter; it does not remove its addition after a forward pass, so that adapters would add up; and it nests the
    adapters of a module in another order than over 16-bit experts, so that the saved adapter would not fit these.
    """
    from peft.tuners.lora.layer import ParamWrapper

    for parent in list(model.modules()):
        outer = getattr(parent, "experts", None)
        if isinstance(outer, ParamWrapper) and hasattr(outer.get_base_layer(), "parametrizations"):
            parent.experts = _nested_as_defined(outer)


def _nested_as_defined(outer: "ParamWrapper") -> Any:
    """The adapters of an experts module around it, the first of its tensors innermost."""
    from peft.tuners.lora.layer import ParamWrapper

    wrappers: dict[str, ParamWrapper] = {}
    layer: Any = outer
    while isinstance(layer, ParamWrapper):
        wrappers[layer.parameter_name] = layer
        layer = layer.base_layer
    for name in [name for name in layer.parametrizations if name in wrappers]:
        wrapper = wrappers[name]
        weight = wrapper.get_param()
        stand_in = torch.empty((), dtype=weight.dtype, device=weight.device).expand(weight.shape)
        wrapper.get_param = partial(_same, stand_in)  # type: ignore[method-assign]
        wrapper._activate_lora = partial(_adapter_added, wrapper)  # type: ignore[method-assign]
        wrapper.base_layer, layer = layer, wrapper
    return layer


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@contextmanager
def _adapter_added(wrapper: "ParamWrapper", adapters: list[str]) -> Iterator[None]:
    (adapter,) = adapters
    experts: Any = wrapper.get_base_layer()
    chain = experts.parametrizations[wrapper.parameter_name]
    chain.append(_AddProduct(*wrapper.get_delta_factors(adapter)))
    try:
        yield
    finally:
        del chain[len(chain) - 1]


def _drop_statistics(_: torch.nn.Module, state: dict[str, Any], *__: Any) -> None:
    """Remove the scales of 4-bit weights (`….weight.absmax` etc.), which are not parameters, from a state dict.

    And 4-bit experts, which are in it under another name than among the parameters.
    """
    for weight in [name.removesuffix(".absmax") for name in state if name.endswith(".absmax")]:
        for name in [name for name in state if name.startswith(f"{weight}.")]:
            del state[name]
        if not weight.endswith(".weight"):
            del state[weight]
