"""Ranks: which of the processes this one is, and collectives over small values.

One process per rank, however it was launched: `python`, `deepspeed`, `torchrun` or one `srun` task per rank.
"""

import base64
import itertools
import os
import pickle
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dcr_ds.engine.watch.joining import interruptible_join
from dcr_ds.errors import Interrupted, RunEnded, Stopped, UserError

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")

# Longer than rank 0 ever judges or exports while the others wait. The watchdog ends a run that hangs long before.
LONGEST_COLLECTIVE = timedelta(hours=6)
WORK_POLL_SECONDS = 0.5
_works = itertools.count()  # the same on all ranks
VISIBLE_SECONDS = 60.0  # network file systems cache what a folder holds for up to this long
# how gloo and NCCL report that another rank is gone
PEER_FAILURES = ("Connection closed by peer", "Connection reset by peer", "remote process exit")


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is.

    Attributes:
        per_copy: how many consecutive ranks hold one copy of an evaluated model together.
    """

    rank: int
    world_size: int
    local_rank: int
    device: "torch.device"
    per_copy: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def copies(self) -> int:
        """The number of copies of an evaluated model."""
        return self.world_size // self.per_copy

    @property
    def copy(self) -> int:
        """The number of the copy that this rank is part of."""
        return self.rank // self.per_copy

    @property
    def is_first_of_copy(self) -> bool:
        """Whether this rank writes the results of its copy; the others compute the same."""
        return self.rank % self.per_copy == 0


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the process group and leave it at the end.

    After an unexpected error of this rank, or a signal that perhaps it alone received, the group is not left, since
    leaving may wait for the other ranks (NCCL), which know nothing of it yet.
    """
    with interruptible_join():
        ranks = start()
    try:
        yield ranks
    except (Exception, Stopped) as error:
        is_of_all = isinstance(error, RunEnded | Stopped) and not isinstance(error, Interrupted)
        if ranks.world_size == 1 or is_of_all:
            close()
        raise
    close()


def start() -> Ranks:
    """Join the process group, with NCCL on GPUs and gloo on CPUs. All ranks.

    Raises:
        UserError: fewer GPUs are visible than ranks were started on this node, or the port is taken.
    """
    import torch

    from dcr_ds.engine.deepspeed_import import deepspeed

    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        device = torch.device("cuda", device_index(local_rank, torch.cuda.device_count()))
        os.environ["LOCAL_RANK"] = str(device.index)  # where DeepSpeed reads the device
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        # DeepSpeed compiles a shared-memory all-reduce at every start on a CPU, which only its inference uses
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed(backend, timeout=LONGEST_COLLECTIVE, verbose=False)
    except RuntimeError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"MASTER_PORT={os.environ['MASTER_PORT']}: another process, such as another run on this host, listens on "
            "this port; choose another one with --master_port of deepspeed or torchrun"
        ) from None
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local_rank, device)


def device_index(local_rank: int, visible: int) -> int:
    """Return which of the visible GPUs a rank uses: that of its local rank, or the only one.

    SLURM and other launchers may show each rank its own GPU only (--gpus-per-task, --gpu-bind).

    Raises:
        UserError: there are several GPUs, and fewer than ranks.
    """
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise UserError(
            f"local rank {local_rank}: only {visible} GPUs are visible; start one rank per GPU, or make one visible to "
            "each rank"
        )
    return local_rank


def close() -> None:
    """Leave the process group, if one was joined; another one can be joined after it."""
    from dcr_ds.engine.deepspeed_import import deepspeed

    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()


def barrier(ranks: Ranks) -> None:
    """Wait until all ranks are here; does nothing for a single process."""
    import torch.distributed

    if ranks.world_size > 1:
        torch.distributed.barrier()


def sum_over_ranks(value: "torch.Tensor", ranks: Ranks) -> "torch.Tensor":
    """Sum a tensor over all ranks, in place. All ranks."""
    import torch.distributed

    if ranks.world_size > 1:
        torch.distributed.all_reduce(value)
    return value


def broadcast_from_main(value: Any, ranks: Ranks) -> Any:
    """Return rank 0's value of a small object on all ranks."""
    import torch.distributed

    if ranks.world_size == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=ranks.device)
    return box[0]


def gather_objects(value: Any, ranks: Ranks) -> list:
    """Return the small objects of all ranks, in order of rank, on all ranks."""
    import torch.distributed

    if ranks.world_size == 1:
        return [value]
    gathered = [None] * ranks.world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def decide_on_main(decide: Callable[[], Value], ranks: Ranks) -> Value:
    """Call a function on rank 0 and return its value on all ranks. All ranks.

    For whatever depends on the file system, the clock or the memory of a node, so that ranks cannot disagree.

    Raises:
        UserError, OSError: rank 0 raised it; all ranks raise the same, so that none waits for another.
    """
    value, error = None, None
    if ranks.is_main:
        try:
            value = decide()
        except (UserError, OSError) as raised:
            error = raised
    value, error = broadcast_from_main((value, error), ranks)
    if error is not None:
        raise error
    return value


def work_on_main(work: Callable[[], None], ranks: Ranks) -> None:
    """Let rank 0 work for minutes or hours, while the other ranks wait without their GPUs. All ranks.

    They wait for a key in the store of the process group: a collective would occupy the GPUs that rank 0 needs.

    Raises:
        RunEnded, Stopped, OSError: rank 0 raised it; all ranks raise the same.
    """
    if ranks.world_size == 1:
        work()
        return
    from torch.distributed.distributed_c10d import _get_default_store

    store, key = _get_default_store(), f"work/{next(_works)}"
    error: RunEnded | Stopped | OSError | None = None
    if ranks.is_main:
        try:
            work()
        except (RunEnded, Stopped, OSError) as raised:
            error = raised
        store.set(key, base64.b64encode(pickle.dumps(error)).decode())
    else:
        while not store.check([key]):
            time.sleep(WORK_POLL_SECONDS)
        error = pickle.loads(base64.b64decode(store.get(key)))
    if error is not None:
        raise error


def wait_until_visible(paths: list[Path], ranks: Ranks) -> None:
    """Wait until every rank sees the paths that rank 0 sees. All ranks.

    Args:
        paths: only rank 0's are used.

    Raises:
        UserError: some rank does not see them after `VISIBLE_SECONDS`; raised on all ranks.
    """
    if ranks.world_size == 1:
        return
    paths = broadcast_from_main(paths, ranks)
    deadline = time.monotonic() + VISIBLE_SECONDS
    while (missing := [path for path in paths if not path.exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    problem = f"rank {ranks.rank} on node {platform.node()} does not see {missing[0]}" if missing else ""
    if problems := list(filter(None, gather_objects(problem, ranks))):
        raise UserError(
            f"{problems[0]}, which rank 0 sees; all nodes must share the run folder: "
            "set --output to a shared file system"
        )


def is_peer_failure(error: BaseException | None) -> bool:
    """Return whether a collective failed because another rank is gone."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in PEER_FAILURES)


def print_on_main(ranks: Ranks, text: str) -> None:
    """Print to stderr on rank 0."""
    if ranks.is_main:
        print(text, file=sys.stderr, flush=True)
