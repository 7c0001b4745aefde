"""Fused kernels in the blocks of a model: liger-kernel's norms, rotary embeddings and gated MLPs, or torch.compile.

These operations are memory-bound. Fused, each is one pass instead of several and keeps less for the backward pass.
"""

import importlib.util
import os
import shutil
import sys

import torch
from transformers import PreTrainedModel

from dcr_ds.errors import UserError

FUSED = ("llama", "mistral", "qwen2", "qwen3", "phi3")  # dense models that liger-kernel supports


def liger_problem(device: torch.device) -> str:
    """Return why liger-kernel cannot be used on a device; "" if it can."""
    if device.type != "cuda":
        return "no GPU"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed (pip install 'dcr-ds[gpu]')"
    return ""


def resolve_kernels(setting: str, model_type: str, problem: str) -> tuple[str, str]:
    """What computes norms, rotations and MLPs for `auto`, and the reason in a few words.

    Raises:
        UserError: liger is asked for and cannot work here.
    """
    if setting == "compile":
        return setting, "as asked"
    if not problem and model_type not in FUSED:
        problem = f"{model_type} is not among {', '.join(FUSED)}"
    if setting == "liger" and problem:
        raise UserError(f"model.kernels: liger cannot be used: {problem}; say auto or none")
    if setting != "auto":
        return setting, "as asked"
    return ("none", problem) if problem else ("liger", "liger-kernel is installed")


def check_compiler() -> None:
    """Raise UserError unless there is the C++ compiler that torch.compile needs, on a GPU, too."""
    compilers = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    if not any(map(shutil.which, compilers)):
        raise UserError(
            f"model.kernels: compile needs a C++ compiler, and there is none of {', '.join(compilers)}; install g++, "
            "set CXX, or use another value"
        )


def fuse_blocks(model: PreTrainedModel, kernels: str) -> None:
    """Put the fused kernels into the blocks of a model, in place, before it is wrapped or trained.

    transformers has one rotary function per model type, so it is replaced for all models of the type in this process.
    The classes of norms and MLPs, which liger-kernel would also replace, are restored.
    """
    if kernels == "none":
        return
    if kernels == "compile":
        for block in model.get_decoder().layers:
            block.compile(dynamic=True)  # at the first call, with adapters; lengths vary from step to step
        return
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    decoder = model.get_decoder()
    module = sys.modules[type(decoder).__module__]
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    is_trunk = isinstance(decoder.norm, torch.nn.Identity)  # liger-kernel would treat it as a norm
    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    if is_trunk:
        decoder.norm = torch.nn.Identity()
    for name, value in classes.items():
        setattr(module, name, value)
