"""Script: evaluate, kill -9 at random moments and continue, until KILLS kills have hit a running process.

Every second kill comes after a random number of answers, so that some hit the generation on machines of any speed.

    python killed_evaluations.py KILLS SEED OUT ARGUMENT…

The imports of `dcr-ds evaluate` are done once; each evaluation is a process forked from here. The first one writes to
OUT/undisturbed and sets the time scale; the others write to OUT/0, OUT/1, …, a new folder after each finished one. For
each kill, the number of answers written so far is printed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import dcr_ds.engine.resolve
import dcr_ds.evaluate.run
import dcr_ds.report  # noqa: F401
from dcr_ds.commands.evaluate import run
from dcr_ds.engine.deepspeed_import import deepspeed


def start(arguments: list[str], out: Path) -> int:
    """Fork an evaluation; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = run([*arguments, "--out", str(out)])
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(child: int) -> bool:
    """Wait for a process: True if it finished with exit code 0, False if it was killed."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.waitstatus_to_exitcode(status) == 0
    return True


def answers_in(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.rglob("generations.jsonl"))


def is_running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def main() -> None:
    assert deepspeed.ops.__compatible_ops__  # the first access takes a second
    kills, seed, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    arguments = sys.argv[4:]
    started = time.perf_counter()
    assert finish(start(arguments, out / "undisturbed"))
    duration = time.perf_counter() - started
    total = answers_in(out / "undisturbed")
    moments = random.Random(seed)
    killed, rounds = 0, 0
    while killed < kills:
        folder = out / str(rounds)
        wanted = moments.randint(min(answers_in(folder) + 1, total), total)
        child = start(arguments, folder)
        if killed % 2:
            time.sleep(moments.uniform(0, duration))
        while not killed % 2 and answers_in(folder) < wanted and is_running(child):
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        if finish(child):
            rounds += 1
        else:
            killed += 1
            print(f"killed after {answers_in(folder)}", flush=True)
    assert finish(start(arguments, out / str(rounds)))


if __name__ == "__main__":
    main()
