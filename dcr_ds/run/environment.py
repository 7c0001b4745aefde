"""What environment.json records of each attempt: versions, commit, hardware, SLURM job, and notes on the data."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

from dcr_ds.data.load import RunData
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
GIT_SECONDS = 30
LISTS = ("notes", "warnings", "overlaps")  # what was found in the data, over all attempts
# the environment variables that are recorded; no others are, since they may hold secrets
SLURM = {"job": "SLURM_JOB_ID", "array_job": "SLURM_ARRAY_JOB_ID", "array_task": "SLURM_ARRAY_TASK_ID"}
SLURM |= {"nodes": "SLURM_JOB_NODELIST", "restarts": "SLURM_RESTART_COUNT"}


def describe_environment(device: str, world_size: int) -> dict[str, Any]:
    """Describe versions, commit, hardware and, in a SLURM job, its id, nodes and restarts; never a secret."""
    return {
        "device": device,
        "world_size": world_size,
        "python": platform.python_version(),
        "host": platform.node(),
        "cores": os.cpu_count(),
        "packages": package_versions(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
    } | ({"slurm": job} if (job := slurm_job()) else {})


def describe_software() -> dict[str, str | None]:
    """Return the versions of Python and the packages, and the commit of the project; None where it is unknown."""
    return {"python": platform.python_version(), **package_versions(), "commit": _git("rev-parse", "HEAD")}


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on, as far as they are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def slurm_job() -> dict[str, str]:
    """Return id, nodes and restarts of the SLURM job of this process; empty outside a job."""
    return {name: os.environ[variable] for name, variable in SLURM.items() if os.environ.get(variable)}


def record_attempt(environment: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return what environment.json holds after another attempt: this one at the top level, all of them in `attempts`.

    Args:
        before: what environment.json held; {} for a new run. Files of older versions have no `attempts`.
    """
    merged = dict(environment)
    data = before.get("data")
    merged["data"] = (data if isinstance(data, dict) else {}) | environment["data"]
    for name in LISTS:
        texts = [text for text in _list(before.get(name)) if isinstance(text, str)]
        merged[name] = list(dict.fromkeys([*texts, *environment.get(name, [])]))
    facts = {name: value for name, value in environment.items() if name not in ("data", *LISTS)}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return merged | {"attempts": [*_list(before.get("attempts")), {"started": started} | facts]}


def _list(value: Any) -> list[Any]:
    """A value of a file that may be damaged, if it is a list."""
    return value if isinstance(value, list) else []


def _git(*arguments: str) -> str | None:
    """Return what git prints; None without a checkout or without git."""
    if (checkout := source_checkout()) is None:
        return None
    # without locks: a run that is killed here would leave index.lock, and the user's next `git commit` would fail
    command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # no git on the PATH, or a checkout on a file system that hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def describe_data(data: RunData) -> dict[str, Any]:
    """What environment.json says of the data."""
    summary = data.summary()
    notes = summary["notes"] + [f"{name}: {note}" for name, facts in summary["sets"].items() for note in facts["notes"]]
    overlaps = [
        f"{overlap.kind}: {overlap.training_set} {overlap.training_id} and {overlap.evaluation_set} "
        f"{overlap.evaluation_id}"
        for overlap in data.overlaps
    ]
    return {
        "data": summary["sets"],
        "benchmarks": [benchmark.name for benchmark in data.benchmarks],
        "notes": notes,
        "warnings": _confounds(data),
        "overlaps": overlaps,
    }


def _confounds(data: RunData) -> list[str]:
    """Warnings about superficial features that separate the two sets of stage 1."""
    if data.seemingly_toxic is None or data.toxic is None:
        return []
    from dcr_ds.diagnose.confounds import check_confounds, obstacle

    sets = (data.seemingly_toxic.rows, data.toxic.rows)
    if problem := obstacle(*sets):
        return [f"confound check left out: {problem}"]
    return [confound.warning for confound in check_confounds(*sets) if confound.warning]
