"""A rank that dies or hangs ends all ranks soon, with a message naming the rank, its node and its position."""

import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import free_port
from tiny import one_thread_environment

SCRIPT = Path(__file__).with_name("watched_ranks.py")
LONGEST_SECONDS = 40


@pytest.fixture
def launch():
    """Start the script as `world_size` ranks, and return when all have joined."""
    started = []

    def start(mode, world_size=2, hang_minutes=10, command=(sys.executable,)):
        port = free_port()
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


def result_of(process):
    _, stderr = process.communicate(timeout=LONGEST_SECONDS)
    return process.returncode, stderr


def position_of(rank):
    return f"rank {rank} on node {platform.node()}", f"align step {7 + rank}, 28 samples"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_or_frozen_rank_ends_the_other(launch, number, rank):
    processes = launch(f"rank {rank} sleeps")
    processes[rank].send_signal(number)
    code, stderr = result_of(processes[1 - rank])
    assert code == 1
    node, place = position_of(rank)
    assert f"error: {node} is gone" in stderr and f"last at {place}" in stderr, stderr


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("rank 1 fails", "MemoryError: nothing left"),
        ("the disk of rank 1 is full", "a file: cannot be written (No space left on device); free some space"),
    ],
)
def test_a_failing_rank_ends_the_other_which_prints_the_reason(launch, mode, reason):
    first, second = launch(mode)
    assert result_of(second)[0] == 1
    started = time.monotonic()
    code, stderr = result_of(first)  # which waits in a collective
    assert time.monotonic() - started < 10  # as docs/reliability.md says
    assert code == 1 and f"error: {', at '.join(position_of(1))}: {reason}" in stderr, stderr


def test_the_reason_of_a_rank_that_fails_stands_when_its_launcher_stops_the_others(launch):
    """With code 75 instead, SLURM would requeue the job as one that has saved."""
    first, second = launch("rank 1 fails")
    assert result_of(second)[0] == 1
    first.send_signal(signal.SIGTERM)
    code, stderr = result_of(first)
    assert code == 1 and f"error: {', at '.join(position_of(1))}: MemoryError: nothing left" in stderr, stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_outside_of_steps_stops_the_others(launch, rank):
    """They wait in a collective and have received no signal. Rank 0 prints the reason, here or in the command line."""
    other = launch(f"rank {rank} is stopped")[1 - rank]
    code, stderr = result_of(other)
    assert code == 75 and "is gone" not in stderr, stderr
    assert rank == 0 or f"{', at '.join(position_of(1))}: stopped by SIGTERM; the same command continues" in stderr


def test_a_hang_is_reported_with_the_position_of_each_rank_and_thread(launch):
    first, second = launch("rank 1 sleeps", hang_minutes=0.05)
    code, stderr = result_of(first)
    assert code == 1 and "no rank has made progress for 0.05 minutes" in stderr, stderr
    assert all(f"{place}: {node}" in stderr for node, place in (position_of(0), position_of(1))), stderr
    assert "most recent call first" in stderr and "barrier" in stderr
    code, stderr = result_of(second)
    assert code == 1 and "most recent call first" in stderr, stderr


def test_a_single_process_that_hangs_is_result_of(launch):
    (process,) = launch("rank 0 sleeps", world_size=1, hang_minutes=0.05)
    code, stderr = result_of(process)
    assert code == 1 and f"error: {', at '.join(position_of(0))}: no progress for" in stderr


def test_waiting_for_a_rank_that_makes_progress_is_not_a_hang(launch):
    assert [result_of(process) for process in launch("rank 0 makes progress", hang_minutes=0.1)] == [(0, ""), (0, "")]


def test_ranks_whose_launcher_was_killed_end(launch, tmp_path):
    """Otherwise they would keep running next to the run that replaces them."""
    launcher = tmp_path / "torchrun"
    launcher.write_text("import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[1:]])\n")
    (process,) = launch("rank 0 sleeps", world_size=1, command=(sys.executable, str(launcher)))
    process.kill()
    _, stderr = process.communicate(timeout=LONGEST_SECONDS)  # returns when no process has the pipes open
    assert f"the launcher (process {process.pid}) was killed" in stderr
