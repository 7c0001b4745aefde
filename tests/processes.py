"""Start programs of the project in new processes, on one rank or several."""

import socket
import subprocess
import sys
from pathlib import Path

from tiny import one_thread_environment

ROOT = Path(__file__).parents[1]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def as_ranks(ranks: int) -> list[str]:
    """The start of a command that runs a script on several ranks; faster than a launcher."""
    return [sys.executable, str(Path(__file__).with_name("ranks.py")), str(ranks), free_port()]


def torchrun(ranks: int) -> list[str]:
    """The start of a command that runs a script on several ranks with PyTorch's launcher."""
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={free_port()}"]


def run_command(*command, timeout: float = 240) -> subprocess.CompletedProcess:
    """Run a command in the root of the repository; it must succeed. Its output is captured."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=one_thread_environment(), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done
