"""Run as a script: evaluate, kill -9 at random moments and go on, until so many kills have met a living process.

    python killed_evaluations.py KILLS SEED OUT ARGUMENT…

What `dcr-ds evaluate` imports is imported once; every evaluation is a process of its own, forked from here. The first,
into OUT/undisturbed, tells how long one takes; the others go into OUT/0, OUT/1, …, a new folder whenever one is done.
For each kill it prints how many answers were there.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import deepspeed.comm  # noqa: F401
import deepspeed.ops
import torch  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import dcr_ds.engine.resolve
import dcr_ds.evaluate.run
import dcr_ds.report  # noqa: F401
from dcr_ds.commands.evaluate import run


def start(arguments: list[str], out: Path) -> int:
    """The process id of an evaluation."""
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
    """Whether a process ended well; False if it was killed."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.waitstatus_to_exitcode(status) == 0
    return True


def main() -> None:
    assert deepspeed.ops.__compatible_ops__  # the first look probes for a second
    kills, seed, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    arguments = sys.argv[4:]
    started = time.perf_counter()
    assert finish(start(arguments, out / "undisturbed"))
    duration = time.perf_counter() - started
    moments = random.Random(seed)
    killed, rounds = 0, 0
    while killed < kills:
        child = start(arguments, out / str(rounds))
        time.sleep(moments.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        if finish(child):
            rounds += 1
        else:
            killed += 1
            answers = [file.read_bytes().count(b"\n") for file in (out / str(rounds)).rglob("generations.jsonl")]
            print(f"killed after {sum(answers)}", flush=True)
    assert finish(start(arguments, out / str(rounds)))


if __name__ == "__main__":
    main()
