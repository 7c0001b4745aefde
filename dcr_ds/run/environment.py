"""Where a run happens: versions, commit, hardware, SLURM job; what environment.json records."""

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

from dcr_ds.recipe import source_checkout

PACKAGES = (
    "dcr-ds",
    "torch",
    "deepspeed",
    "transformers",
    "datasets",
    "peft",
    "safetensors",
    "flash-attn",
    "bitsandbytes",
)
# the variables of the environment that are recorded; no other is read: one of them may hold a secret
SLURM = {"job": "SLURM_JOB_ID", "array_job": "SLURM_ARRAY_JOB_ID", "array_task": "SLURM_ARRAY_TASK_ID"}
SLURM |= {"nodes": "SLURM_JOB_NODELIST", "restarts": "SLURM_RESTART_COUNT"}


def describe_environment(device: str, world_size: int) -> dict[str, Any]:
    """Versions, commit, hardware, and in a SLURM job its id, nodes and restarts; never a secret."""
    return {
        "device": device,
        "world_size": world_size,
        "python": platform.python_version(),
        "host": platform.node(),
        "cores": os.cpu_count(),
        "packages": package_versions(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
    } | ({"slurm": job} if (job := slurm_job()) else {})


def package_versions() -> dict[str, str]:
    """Version of each package that the project stands on, of those that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def slurm_job() -> dict[str, str]:
    """Id, nodes and restarts of the SLURM job that this process belongs to; empty where there is none."""
    return {name: os.environ[variable] for name, variable in SLURM.items() if os.environ.get(variable)}


def _git(*arguments: str) -> str | None:
    if (checkout := source_checkout()) is None:
        return None
    done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
