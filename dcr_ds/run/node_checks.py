"""Checks of one node before a run starts: disk space, the shared run folder, GPUs, versions.

A problem is a kind and a text: `{"temporary": "/tmp has 0.1 GiB free, …"}`. The preflight compares kinds over nodes,
since the texts differ.
"""

import ctypes
import errno
import os
import platform
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_ds.engine.distributed import VISIBLE_SECONDS, device_index
from dcr_ds.errors import UserError, first_line
from dcr_ds.files import existing_part, free_bytes
from dcr_ds.run.environment import package_versions

GIB = 2**30
NO_RESERVATION = (errno.ENOSYS, errno.EOPNOTSUPP)  # the file system cannot reserve space, so quotas are not seen


@dataclass(frozen=True)
class Place:
    """A rank of the job, as described in the environment by slurm/job.sh and slurm/rank.sh."""

    rank: int
    world_size: int
    local_rank: int
    ranks_per_node: int
    gpus_per_node: int
    nodes: list[str]

    @classmethod
    def from_environment(cls) -> "Place":
        return cls(
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            ranks_per_node=int(os.environ["LOCAL_WORLD_SIZE"]),
            gpus_per_node=int(os.environ["DCR_DS_GPUS"]),
            nodes=os.environ["DCR_DS_NODES"].split(),
        )

    def node_of(self, rank: int) -> str:
        """The node of a rank that did not report its own; srun is asked for --distribution=block."""
        return self.nodes[rank // self.ranks_per_node]


Problems = dict[str, str]  # kind → text
Report = dict[str, Any]  # of a rank: node, problems, versions, gpu


def check_this_rank(place: Place, probe: Path, free_gib: float, seconds: float = VISIBLE_SECONDS) -> Report:
    """Return the name of this rank's node, its problems, its versions and its GPU.

    Args:
        probe: a file that rank 0 has created in the run folder.
        seconds: how long to wait until the probe is visible.
    """
    problems: Problems = {}
    if place.local_rank == 0:
        if problem := _space(Path(tempfile.gettempdir()), free_gib):
            problems["temporary"] = problem
        if problem := _is_visible(probe, seconds):
            problems["run folder"] = problem
    gpu, gpu_problems = check_gpu(place)
    return {
        "node": os.environ.get("SLURMD_NODENAME") or place.node_of(place.rank),
        "problems": problems | gpu_problems,
        "versions": {"python": platform.python_version(), **package_versions()},
        "gpu": gpu,
    }


def create_probe(folder: Path, free_gib: float) -> Path:
    """Check what all nodes share: create a file next to the run's own, for the other nodes to find. Rank 0.

    Raises:
        UserError: the folder cannot be written to, or has too little space.
    """
    existing = existing_part(folder)
    if problem := _space(existing, free_gib) or _quota(existing, free_gib):
        raise UserError(f"{problem}; free some space, set --output to another folder, or lower DCR_DS_FREE_GIB")
    probe = existing / f".preflight-{secrets.token_hex(8)}"  # a new name, so that no node has it in its cache
    probe.touch()
    return probe


def _space(path: Path, free_gib: float) -> str:
    """Return "" or why a folder cannot take so many GiB."""
    try:
        with tempfile.TemporaryFile(dir=path):
            free = free_bytes(path)
    except OSError as error:
        return f"{path} cannot be written to ({error.strerror})"
    if free is None or free >= free_gib * GIB:
        return ""
    return f"{path} has {free / GIB:.1f} GiB free, {free_gib:g} are required"


def _quota(path: Path, free_gib: float) -> str:
    """Return "" or why so many GiB cannot be reserved in a folder, by a quota for example; nothing is written.

    Not by os.posix_fallocate, which writes gigabytes if the file system cannot reserve.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_longlong(int(free_gib * GIB))
    if size.value <= 0 or not hasattr(libc, "fallocate"):
        return ""
    with tempfile.TemporaryFile(dir=path) as file:
        done = libc.fallocate(file.fileno(), 0, ctypes.c_longlong(0), size)
    number = ctypes.get_errno()
    if done == 0 or number in NO_RESERVATION:
        return ""
    return f"{path} does not take {free_gib:g} GiB ({os.strerror(number)}), although the disk has them free"


def _is_visible(probe: Path, seconds: float) -> str:
    """Return "" or why this node does not share the run folder with rank 0."""
    deadline = time.monotonic() + seconds
    while not probe.exists():
        if time.monotonic() > deadline:
            return f"{probe.parent} is not that of the first node; all nodes must share the run folder (--output)"
        time.sleep(0.1)
    try:
        with tempfile.TemporaryFile(dir=probe.parent):
            return ""
    except OSError as error:
        return f"{probe.parent} cannot be written to ({error.strerror})"


def check_gpu(place: Place) -> tuple[str, Problems]:
    """Compute on the GPU of this rank; return its UUID ("" without one) and the problems."""
    import torch

    visible = torch.cuda.device_count()
    if problem := count_problem(place, visible, has_cuda=torch.version.cuda is not None):
        return "", problem
    if not visible:
        return "", {}
    device = torch.device("cuda", device_index(place.local_rank, visible))
    try:
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:
        return "", {"GPU": f"GPU {place.local_rank} does not compute ({first_line(error)})"}
    return str(torch.cuda.get_device_properties(device).uuid), {}


def count_problem(place: Place, visible: int, has_cuda: bool) -> Problems:
    """Compare the GPUs that a rank sees with those of the job. A rank may see all GPUs of its node, or its own."""
    if place.gpus_per_node and not has_cuda:
        return {"torch": f"0 GPUs visible, {place.gpus_per_node} requested: this torch was built without CUDA"}
    if visible > max(1, place.ranks_per_node):
        return {
            "idle GPUs": f"{visible} GPUs are visible to {place.ranks_per_node} ranks; request them with "
            f"--gpus-per-node={visible}, or hide them with CUDA_VISIBLE_DEVICES"
        }
    if visible == 1 or visible == place.ranks_per_node or not (visible or place.gpus_per_node):
        return {}
    return {"GPU": f"{visible} GPUs visible to a rank, {place.ranks_per_node} ranks need one each"}
