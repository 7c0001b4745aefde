"""What no longer goes on is ended on all ranks, soon, and told: which rank, on which node, and where it was."""

import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import one_thread_environment

SCRIPT = Path(__file__).with_name("watched_ranks.py")
LONGEST_SECONDS = 40


@pytest.fixture
def launch():
    """Start the script as so many ranks, and come back when all have joined."""
    started = []

    def start(mode, world_size=2, hang_minutes=10, command=(sys.executable,)):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        for rank in range(world_size):
            names = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            started.append(
                subprocess.Popen(
                    [*command, str(SCRIPT), mode, str(hang_minutes)], env=one_thread_environment(**names), text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        for process in started:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        return started

    yield start
    for process in started:
        process.kill()


def ended(process):
    _, stderr = process.communicate(timeout=LONGEST_SECONDS)
    return process.returncode, stderr


def at(rank):
    return f"rank {rank} on node {platform.node()}", f"align step {7 + rank}, 28 samples"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_or_frozen_ends_the_other(launch, number, rank):
    processes = launch(f"rank {rank} sleeps")
    processes[rank].send_signal(number)
    code, stderr = ended(processes[1 - rank])
    assert code == 1
    node, place = at(rank)
    assert f"error: {node} is gone" in stderr and f"last at {place}" in stderr, stderr


def test_a_rank_that_fails_ends_the_other_which_tells_why(launch):
    first, second = launch("rank 1 fails")
    code, stderr = ended(first)
    assert code == 1 and f"error: {', at '.join(at(1))}: MemoryError: nothing left" in stderr, stderr
    assert ended(second)[0] == 1


def test_a_hang_is_told_with_the_place_of_each_rank_and_every_thread(launch):
    first, second = launch("rank 1 sleeps", hang_minutes=0.05)
    code, stderr = ended(first)
    assert code == 1 and "no rank has made progress for 0.05 minutes" in stderr, stderr
    assert all(f"{place}: {node}" in stderr for node, place in (at(0), at(1))), stderr
    assert "most recent call first" in stderr and "barrier" in stderr
    assert ended(second)[0] == 1


def test_a_single_process_that_hangs_is_ended(launch):
    (process,) = launch("rank 0 sleeps", world_size=1, hang_minutes=0.05)
    code, stderr = ended(process)
    assert code == 1 and f"error: {', at '.join(at(0))}: no progress for" in stderr


def test_ranks_that_wait_for_one_that_goes_on_do_not_hang(launch):
    assert [ended(process) for process in launch("rank 0 makes progress", hang_minutes=0.25)] == [(0, ""), (0, "")]


def test_ranks_whose_launcher_was_killed_end(launch, tmp_path):
    """Or they would go on beside the run that takes their place."""
    launcher = tmp_path / "torchrun"
    launcher.write_text("import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[1:]])\n")
    (process,) = launch("rank 0 sleeps", world_size=1, command=(sys.executable, str(launcher)))
    process.kill()
    _, stderr = process.communicate(timeout=LONGEST_SECONDS)  # when nobody holds the pipes any more
    assert f"the launcher (process {process.pid}) was killed" in stderr
