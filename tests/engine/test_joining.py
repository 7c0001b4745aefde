"""Leftover launcher variables: a message says what is wrong or what the process waits for, and Ctrl-C works."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import as_ranks, free_port, run_command
from tiny import one_thread_environment

from dcr_ds.engine.launcher import LAUNCHER_VARIABLES, set_environment
from dcr_ds.errors import UserError

# SIGINT is ignored in a process that a shell started in the background, and in its children
JOIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import dcr_ds.engine.watch.joining as joining
from dcr_ds.engine import distributed
from dcr_ds.engine.launcher import set_environment
joining.REPORT_SECONDS = 0.5
set_environment()
with distributed.joined():
    print("joined")
"""
LEAVE = """
import os
import sys
import torch.distributed
from dcr_ds import errors
from dcr_ds.engine.distributed import joined
from dcr_ds.engine.launcher import set_environment
set_environment()
error = getattr(errors, sys.argv[1])
try:
    with joined():
        torch.distributed.barrier()
        raise error("the end")
except error:
    with open(f"{__file__}.{os.environ['RANK']}", "w") as stream:
        stream.write("joined" if torch.distributed.is_initialized() else "left")
"""


@pytest.fixture
def launcher(monkeypatch):
    """Set these variables of the launcher and unset all others."""

    def set_variables(**variables: str) -> None:
        for name in (*LAUNCHER_VARIABLES, "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "TORCHELASTIC_RUN_ID"):
            monkeypatch.setenv(name, "")  # so that it is restored after the test
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "wait for 1 more, and lacks LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two in the environment is not a number"),
        ({"RANK": "1"}, "RANK=1: ranks go from 0 to WORLD_SIZE - 1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "ranks go from 0 to WORLD_SIZE - 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment must be at least 1"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0 in the environment must be at least 1"),
        ({"MASTER_PORT": "99999"}, "must be from 1 to 65535"),
        ({"LOCAL_RANK": "5"}, "a local rank is never above the rank"),
    ],
)
def test_incomplete_launcher_variables_are_refused_and_named(launcher, variables, expected):
    launcher(**variables)
    with pytest.raises(UserError) as error:
        set_environment()
    assert expected in str(error.value)
    _, _, unset = str(error.value).partition("unset ")
    assert set(unset.split()) == set(variables)


@pytest.mark.parametrize("variable", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_processes_that_would_each_be_a_run_of_its_own_are_refused(launcher, monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    launcher()
    with pytest.raises(UserError, match=f"{variable}=2 in the environment.* slurm/dcr.sh.* unset {variable}"):
        set_environment()
    launcher(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="20000")
    set_environment()
    monkeypatch.setenv(variable, "1")
    launcher()
    set_environment()


def test_a_single_process_needs_no_address_of_a_job(launcher):
    launcher(MASTER_ADDR="node17.invalid", MASTER_PORT="29500")
    set_environment()
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"


def test_a_port_that_another_run_uses_is_named():
    """Two runs on one host with the launcher's default port: rank 0 of the second one ends with a message."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = subprocess.run(
            [sys.executable, "-c", JOIN],
            env=one_thread_environment(**variables),
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert f"UserError: MASTER_PORT={port}: another process" in done.stderr and "--master_port" in done.stderr


def test_empty_launcher_variables_mean_a_single_process(launcher):
    launcher(WORLD_SIZE="", RANK="", LOCAL_RANK="", LOCAL_WORLD_SIZE="")
    set_environment()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("0", "1", "0")


@pytest.mark.parametrize("host", ["node17.invalid", "node17..invalid"])
def test_an_address_that_cannot_be_resolved_is_named_at_once(host):
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": host, "MASTER_PORT": "9"}
    process = subprocess.Popen(
        [sys.executable, "-c", JOIN], stderr=subprocess.PIPE, text=True, env=one_thread_environment() | variables
    )
    try:
        lines = list(itertools.takewhile(lambda line: "has waited" not in line, process.stderr))
        assert any(f"MASTER_ADDR={host} in the environment has no address" in line for line in lines), lines
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("error", "ranks", "expected"), [("Stopped", 2, "left"), ("Interrupted", 2, "joined"), ("Interrupted", 1, "left")]
)
def test_the_group_is_left_only_when_all_ranks_leave_it(tmp_path, error, ranks, expected):
    """With NCCL, a rank that alone received a signal would wait for the others before it tells them."""
    script = tmp_path / "leave.py"
    script.write_text(LEAVE)
    run_command(*as_ranks(ranks), script, error)
    assert [path.read_text() for path in tmp_path.glob("leave.py.*")] == [expected] * ranks


@pytest.mark.parametrize(
    ("rank", "resolver"), [("0", ""), ("1", "import socket, time\nsocket.getaddrinfo = lambda *_: time.sleep(60)")]
)
def test_waiting_for_ranks_that_nobody_started_is_reported_and_can_be_interrupted(rank, resolver):
    """Also while the system looks for the address, for which it may take long."""
    port = free_port()
    variables = {
        "RANK": rank,
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", resolver + JOIN],
        env=one_thread_environment() | variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = next(line for line in process.stderr if "has waited" in line)
        assert f"127.0.0.1:{port}" in line and "unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT LOCAL_RANK" in line
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 75 and "stopped by SIGINT while waiting" in stderr
        assert time.monotonic() - started < 5
    finally:
        process.kill()
