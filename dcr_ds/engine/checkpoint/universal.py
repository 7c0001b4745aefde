"""Convert a checkpoint for another number of ranks to DeepSpeed's universal format: a file per parameter and moment."""

import shutil
import subprocess
import sys
from pathlib import Path

from dcr_ds.progress import heartbeat

# ZeRO stages with the same layout can load each other's universal checkpoints. Stage 0 needs none.
LAYOUTS = {0: "whole", 1: "parts of the optimizer", 2: "parts of the optimizer", 3: "parts of everything"}
WORKERS = 4
HEARTBEAT_SECONDS = 30


def convert(checkpoint: Path, universal: Path) -> str:
    """Write the universal format of a checkpoint into a folder; return "" or the problem. Rank 0.

    Runs in a subprocess: DeepSpeed's converter forks workers, which a process that uses a GPU must not do.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(checkpoint)]
    command += ["--output_folder", str(universal), "--inject_missing_state"]
    command += ["--num_extract_workers", str(WORKERS), "--num_merge_workers", str(WORKERS)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        stderr = _wait(process, f"converting {checkpoint}")
    (universal.parent / "latest_universal").unlink(missing_ok=True)
    if process.returncode == 0:
        return ""
    shutil.rmtree(universal, ignore_errors=True)
    reason = (stderr.strip() or "no reason given").splitlines()[-1]
    return f"{checkpoint}: cannot be converted for another number of ranks ({reason})"


def _wait(process: subprocess.Popen, place: str) -> str:
    """Return what a process prints to stderr until it ends, with heartbeats meanwhile."""
    while True:
        heartbeat(place)
        try:
            return process.communicate(timeout=HEARTBEAT_SECONDS)[1]
        except subprocess.TimeoutExpired:
            continue
