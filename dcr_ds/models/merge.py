"""Merge a LoRA adapter into a checkpoint, one weight at a time, from the checkpoint's own weights and dtypes."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from dcr_ds.errors import UserError, first_line
from dcr_ds.models.check import build_on_meta
from dcr_ds.models.checkpoint_files import read_headers, stored_dtypes
from dcr_ds.models.hashes import check_base
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.splice import ALONE, Processes, splice

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from typing_extensions import TypeIs

WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model.model."  # what peft puts before a module's name
# options of an adapter whose merge peft computes on the whole model: on fused experts, DoRA, …
NOT_BY_WEIGHT = ("target_parameters", "use_dora", "layer_replication", "lora_bias", "alora_invocation_tokens")
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # others, such as PiSSA's, change the base's weights
UNKNOWN_STARTS = ("_niter_", "lora_ga")  # in its name: by a random decomposition (PiSSA), or by gradients
CPU = torch.device("cpu")


def has_adapter(model: nn.Module) -> "TypeIs[PeftModel]":
    """Whether peft has added an adapter to a model; without importing peft, which takes seconds."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def merge_lora(source: Path, adapter: Path, target: Path, processes: Processes = ALONE) -> None:
    """Write a copy of the source checkpoint with an adapter merged in, from the source's own weights and dtypes.

    All processes. One weight at a time, except with adapters on fused experts, with DoRA, or whose start changed the
    base: rank 0 loads those models whole.

    Raises:
        UserError: the adapter is damaged, not a LoRA adapter, or was trained on another base.
    """
    processes.decide(lambda: check_base(source, adapter))
    processes.decide(lambda: check_adapter(adapter))
    names, config = adapted_weights(adapter), _config_of(adapter)
    is_plain = config.peft_type == "LORA" and getattr(config, "init_lora_weights", True) in PLAIN_STARTS
    if not is_plain or any(getattr(config, option, None) for option in NOT_BY_WEIGHT):
        processes.decide(
            lambda: _merge_whole(source, adapter, target, None if getattr(config, "target_parameters", None) else names)
        )
    else:
        merged = MergedWeights(source, adapter, names, processes)
        splice(merged.model, merged, source, target)


def _merge_whole(source: Path, adapter: Path, target: Path, names: set[str] | None) -> None:
    """Merge in memory.

    Args:
        names: the weights that the adapter changes; None: any, with an adapter on fused experts.
    """
    # the dtype that config.json names may be another one than that of the weights
    dtype = torch.bfloat16 if stored_dtypes(source) == {"BF16"} else torch.float32
    merged = load_with_adapter(source, adapter, dtype, "eager", CPU)  # eager: supported by every model
    splice(
        merged,
        {name: weight for name, weight in merged.named_parameters() if not names or name in names},
        source,
        target,
    )


class MergedWeights:
    """The weights of a checkpoint that an adapter changes, merged when they are read.

    Attributes:
        model: the base model with the adapter, on the meta device.
    """

    def __init__(self, source: Path, adapter: Path, names: set[str], processes: Processes):
        """
        Args:
            names: the weights that the adapter changes.
        """
        from peft.tuners.lora import LoraLayer

        self.processes, self._adapter = processes, adapter / WEIGHTS
        self.model = build_on_meta(source)
        self._stored = read_headers(source)
        adapted = _with_adapter(self.model, source, adapter, low_cpu_mem_usage=True, torch_device="cpu")
        modules = {name.removeprefix(ROOT): module for name, module in adapted.named_modules()}
        self._layers: dict[str, Any] = {
            f"{name}.weight": layer for name, layer in modules.items() if isinstance(layer, LoraLayer)
        }
        shapes = {name: tuple(self._stored[name]["shape"]) for name in sorted(names) if name in self._layers}
        self.shapes: Mapping[str, Sequence[int]] = shapes

    def read(self, name: str, wanted: bool) -> torch.Tensor | None:
        """A merged weight, as peft merges it."""
        if not wanted:
            return None
        layer = self._layers[name]
        base = layer.get_base_layer()
        with safe_open(self._stored[name]["file"], "pt") as stream:
            base.weight = torch.nn.Parameter(stream.get_tensor(name).clone(), requires_grad=False)
        layer.load_state_dict(self._adapter_of(name), strict=False, assign=True)
        layer.merge()
        merged = base.weight.data
        layer.merged_adapters.clear()
        layer.to("meta")  # new tensors: `merged` stays
        return merged

    def _adapter_of(self, name: str) -> dict[str, torch.Tensor]:
        """The adapter's tensors for a weight, by their names in peft's layer, and in float32, as peft loads them."""
        tensors = {}
        with safe_open(self._adapter, "pt") as stream:
            for saved in stream.keys():
                if f"{module_of(saved)}.weight" == name:
                    part, *rest = saved.partition(".lora_")[2].split(".")  # A.weight, embedding_A
                    tensors[".".join([f"lora_{part}", "default", *rest])] = stream.get_tensor(saved).float()
        return tensors


def load_with_adapter(
    source: Path, adapter: Path, dtype: torch.dtype | str, attention: str, device: torch.device
) -> PreTrainedModel:
    """A causal language model with an adapter merged in.

    Raises:
        UserError: the adapter is damaged, cannot be merged, or was trained on another model.
    """
    check_adapter(adapter)
    start = str(getattr(_config_of(adapter), "init_lora_weights", True))
    if any(unknown in start for unknown in UNKNOWN_STARTS):
        raise UserError(
            f"{adapter}: init_lora_weights is {start}: it changed the weights of the base as its training began, in a "
            "way that is not recorded; convert the adapter where it was trained, with "
            "path_initial_model_for_weight_conversion of peft's save_pretrained, or set init_lora_weights to true in "
            "adapter_config.json if the base has the changed weights"
        )
    base = load_causal_lm(source, dtype, attention, device)
    adapted = _with_adapter(base, source, adapter)
    try:
        return adapted.merge_and_unload()
    except (AttributeError, NotImplementedError, RuntimeError) as error:  # what peft raises, by kind of adapter
        raise UserError(f"{adapter}: peft cannot merge this adapter ({first_line(error)[:200]})") from None


def _with_adapter(base: PreTrainedModel, source: Path, adapter: Path, **options) -> "PeftModel":
    from peft import PeftModel

    _refuse_other_modules(base, source, adapter)
    # Missing tensors would count as untrained. The adapter of a trunk with experts names modules of all blocks.
    action: Literal["error", "ignore"] = (
        "ignore" if getattr(_config_of(adapter), "target_parameters", None) else "error"
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(action, "Found missing adapter keys")
            return PeftModel.from_pretrained(base, adapter, **options)
    except Exception as error:  # what peft raises depends on the field of adapter_config.json that is wrong
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{adapter}: this adapter does not fit the model {source} ({reason})") from None


def _refuse_other_modules(base: PreTrainedModel, source: Path, adapter: Path) -> None:
    """Raise UserError if the adapter has weights for modules that the model lacks, which peft leaves out.

    Experts are left to peft, which knows several names for them.
    """
    try:
        with safe_open(adapter / WEIGHTS, "pt") as stream:
            adapted = {module_of(name) for name in stream.keys() if ".lora_" in name and "experts" not in name}
    except (OSError, SafetensorError):
        return  # which peft reports
    if lacking := sorted(adapted - {name for name, _ in base.named_modules()}):
        raise UserError(
            f"{adapter}: has weights for {len(lacking)} modules that the model {source} lacks ({lacking[0]}); use the "
            "base model that it was trained on"
        )


def adapted_weights(adapter: Path) -> set[str]:
    """Names of the base weights that a LoRA adapter changes, and of the biases.

    Raises:
        UserError: the adapter cannot be read, or is no LoRA adapter.
    """
    with _opened(adapter) as stream:
        names = list(stream.keys())
    if others := [name for name in names if ".lora_" not in name]:
        raise UserError(f"{adapter}: holds {others[0]}, which is not a LoRA weight; only LoRA adapters can be merged")
    return {f"{module_of(name)}.{'bias' if name.endswith('.bias') else 'weight'}" for name in names}


def check_adapter(adapter: Path) -> None:
    """Raise UserError if an adapter cannot be read, or a tensor of it is empty or not finite."""
    _config_of(adapter)
    with _opened(adapter) as stream:
        for name in stream.keys():
            tensor = stream.get_tensor(name)
            if not tensor.numel() or not torch.isfinite(tensor).all():
                raise UserError(
                    f"{adapter / WEIGHTS}: {name} is empty or not finite; copy the adapter again, or use one of an "
                    "earlier checkpoint if its training diverged"
                )


def _opened(adapter: Path) -> safe_open:
    try:
        return safe_open(adapter / WEIGHTS, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{adapter / WEIGHTS}: cannot be read ({error}); copy the adapter again") from None


def _config_of(adapter: Path) -> "PeftConfig":
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(adapter))
    except Exception as error:  # as in _with_adapter
        raise UserError(f"{adapter}: peft cannot read adapter_config.json ({type(error).__name__}: {error})") from None


def module_of(name: str) -> str:
    """The module that an adapter's tensor belongs to."""
    return name.removeprefix(ROOT).partition(".lora_")[0]
