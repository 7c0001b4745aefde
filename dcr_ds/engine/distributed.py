"""Ranks: who this process is, and what all of them do together.

One process a rank, however launched: `python`, `deepspeed`, `torchrun` or one `srun` task a rank. The environment
is the one place the answer is read from; `set_environment` fills it in where no launcher did.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dcr_ds.errors import RunEnded

if TYPE_CHECKING:
    import torch

# Longer than rank 0 ever judges or exports alone while the others wait. The watchdog ends what hangs long before.
LONGEST_COLLECTIVE = timedelta(hours=6)
# how gloo and NCCL word that another rank is gone
LOST_RANK_WORDS = ("Connection closed by peer", "Connection reset by peer", "remote process exit")


@dataclass(frozen=True)
class Ranks:
    rank: int
    world_size: int
    local_rank: int
    device: "torch.device"

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def set_environment() -> None:
    """Prepare the process environment; call before torch is imported.

    Threads a rank are cores / ranks on this node, waiting passively: spinning OpenMP threads on a shared core
    made a step seven times slower. A single process gets a world of one and a free port (DeepSpeed would look
    for MPI otherwise, and its launcher's default port is often taken).
    """
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks_here)))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # on some CPUs bitsandbytes, which peft imports, fetches this kernel as it is imported: code nobody asked for
    os.environ.setdefault("LOCAL_KERNELS", "kernels-community/quantization-bitsandbytes=/dev/null")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    if os.environ["WORLD_SIZE"] == "1" and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun listens on its own
        os.environ["MASTER_PORT"] = str(_free_port())


def is_main_process() -> bool:
    """Whether this is rank 0, before torch is imported."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined() -> Iterator[Ranks]:
    """A process group, left at the end; not after a fault of this rank, since leaving may wait for the others."""
    ranks = start()
    try:
        yield ranks
    except Exception as error:
        if ranks.world_size == 1 or isinstance(error, RunEnded):
            close()
        raise
    close()


def start() -> Ranks:
    """Join the process group: NCCL where there is a GPU, gloo on a CPU. All ranks."""
    import deepspeed.ops
    import torch

    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        # DeepSpeed compiles a shared-memory all-reduce at every start on a CPU; only its inference uses it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, timeout=LONGEST_COLLECTIVE, verbose=False)
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local_rank, device)


def close() -> None:
    """Leave the process group, if one was joined; DeepSpeed forgets its groups with it, and another can be joined."""
    import deepspeed.comm

    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()


def barrier(ranks: Ranks) -> None:
    """All ranks wait for each other; nothing for a single process."""
    import torch.distributed

    if ranks.world_size > 1:
        torch.distributed.barrier()


def sum_over_ranks(value: "torch.Tensor", ranks: Ranks) -> "torch.Tensor":
    """The sum of a tensor over all ranks, in place. All ranks."""
    import torch.distributed

    if ranks.world_size > 1:
        torch.distributed.all_reduce(value)
    return value


def broadcast_from_main(value: Any, ranks: Ranks) -> Any:
    """Rank 0's value of a small object, on all ranks."""
    import torch.distributed

    if ranks.world_size == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=ranks.device)
    return box[0]


def gather_objects(value: Any, ranks: Ranks) -> list:
    """The small objects of all ranks, by rank, on all ranks. All ranks."""
    import torch.distributed

    if ranks.world_size == 1:
        return [value]
    gathered = [None] * ranks.world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def is_peer_failure(error: BaseException | None) -> bool:
    """Whether a collective failed because another rank is no longer there."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST_RANK_WORDS)


def print_on_main(ranks: Ranks, text: str) -> None:
    """Print on rank 0."""
    if ranks.is_main:
        print(text, file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
