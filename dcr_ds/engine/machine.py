"""The machine that a run is resolved for: detected by training, described by options when a run is planned."""

import os
from dataclasses import dataclass

import torch

from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.fused import liger_problem
from dcr_ds.models.load import flash_attention_problem
from dcr_ds.models.varlen import has_varlen_kernel


def device_name(device: torch.device) -> str:
    """The name of a GPU, or CPU with the number of threads per rank."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads per rank"


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU, or of the host."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Machine:
    """What `auto` values depend on: devices, ranks and the optional kernels that are usable there.

    Attributes:
        memory_bytes: memory of one GPU; on a CPU the memory of the host divided by its ranks.
        flash_attention: why flash-attn cannot be used in bfloat16; "" if it can.
        liger: why liger-kernel cannot be used; "" if it can.
        varlen: whether PyTorch's variable-length attention kernel can be used in bfloat16.
    """

    on_gpu: bool
    memory_bytes: int
    ranks: int = 1
    nodes: int = 1
    bf16: bool = False
    flash_attention: str = "no GPU"
    liger: str = "no GPU"
    varlen: bool = False

    @property
    def ranks_per_node(self) -> int:
        return self.ranks // self.nodes

    @classmethod
    def detect(cls, ranks: Ranks) -> "Machine":
        """Describe the machine of this process; all ranks are assumed to have the same devices and packages."""
        device, on_gpu = ranks.device, ranks.device.type == "cuda"
        # torchrun and slurm/ set the first, DeepSpeed's launcher the second
        local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
        ranks_per_node = int(local or ranks.world_size)
        return cls(
            on_gpu=on_gpu,
            memory_bytes=device_bytes(device) // (1 if on_gpu else ranks_per_node),
            ranks=ranks.world_size,
            nodes=max(1, ranks.world_size // ranks_per_node),
            bf16=on_gpu and torch.cuda.is_bf16_supported(),
            flash_attention=flash_attention_problem(device),
            liger=liger_problem(device),
            varlen=has_varlen_kernel(device),
        )
