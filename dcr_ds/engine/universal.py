"""A checkpoint for another number of ranks: DeepSpeed's universal form, one file a parameter and moment."""

import shutil
import subprocess
import sys
from pathlib import Path

# Which ZeRO stages load each other's universal checkpoints. Stage 0 has none: each rank holds, and loads, everything.
LAYOUTS = {0: "whole", 1: "parts of the optimizer", 2: "parts of the optimizer", 3: "parts of everything"}
WORKERS = 4


def convert(checkpoint: Path, universal: Path) -> str:
    """Write the universal form of a checkpoint into a folder: "", or what went wrong. Rank 0.

    In a process of its own: DeepSpeed's converter forks workers, which a process that uses a GPU must not.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(checkpoint)]
    command += ["--output_folder", str(universal), "--inject_missing_state"]
    command += ["--num_extract_workers", str(WORKERS), "--num_merge_workers", str(WORKERS)]
    done = subprocess.run(command, capture_output=True, text=True)
    (universal.parent / "latest_universal").unlink(missing_ok=True)
    if done.returncode == 0:
        return ""
    shutil.rmtree(universal, ignore_errors=True)
    reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
    return f"{checkpoint}: cannot be converted for another number of ranks ({reason})"
