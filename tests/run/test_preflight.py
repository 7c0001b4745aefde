"""The preflight names nodes that do not work, and does not wait for a node that does not answer."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import free_port
from tiny import one_thread_environment

from dcr_ds.run.preflight import Place, check_this_rank, judge, within

NODES = ["alpha", "beta", "gamma"]
PLACE = Place(rank=0, world_size=6, local_rank=0, ranks_per_node=2, gpus_per_node=0, nodes=NODES)


def reports(versions: dict[int, str] | None = None, problems: dict[int, str] | None = None) -> dict:
    """Reports of six ranks on three nodes, without problems except for the given ones."""
    versions, problems = versions or {}, problems or {}
    return {
        rank: {"problems": [problems[rank]] if rank in problems else [], "versions": {"torch": versions.get(rank, "2")}}
        for rank in range(6)
    }


def test_healthy_nodes_are_not_named():
    assert judge(PLACE, reports()) == {}


def test_a_problem_is_reported_with_the_node_of_its_rank():
    assert judge(PLACE, reports(problems={3: "no GPU"})) == {"beta": "no GPU"}


def test_a_rank_without_a_report_names_its_node():
    answers = reports()
    del answers[5]
    assert list(judge(PLACE, answers)) == ["gamma"]
    assert "no answer" in judge(PLACE, answers)["gamma"]


def test_the_node_of_another_version_is_named_with_both():
    assert judge(PLACE, reports(versions={2: "3", 3: "3"})) == {"beta": "torch 3, the others have 2"}


def test_hanging_checks_time_out_and_failing_ones_are_reported():
    def fail() -> None:
        raise RuntimeError("no route\nto host")

    assert within(0.05, lambda: time.sleep(60)) == "no end after 0.05 s"
    assert within(60, fail) == "no route"
    assert within(60, lambda: None) is None


@pytest.fixture
def preflight(tmp_path):
    """Run some ranks of a job with one rank per node; returns their exit codes, outputs, and the result."""

    def run(*arguments: str, ranks: list[int], world_size: int) -> tuple[list[int], str, list[str]]:
        verdict = tmp_path / "verdict"
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "DCR_DS_GPUS": "0",
            "DCR_DS_NODES": " ".join(NODES[:world_size]),
        }
        command = [sys.executable, "-m", "dcr_ds.run.preflight", "--verdict", str(verdict), *arguments]
        started = [
            subprocess.Popen(
                command, env=one_thread_environment(RANK=str(rank), **shared), stderr=subprocess.PIPE, text=True
            )
            for rank in ranks
        ]
        output = "".join(process.communicate(timeout=120)[1] for process in started)
        written = verdict.read_text().splitlines() if verdict.exists() else []
        return [process.returncode for process in started], output, written

    return run


def test_two_healthy_nodes_pass_the_all_reduce(preflight):
    codes, output, verdict = preflight("--free-gib", "0.001", ranks=[0, 1], world_size=2)
    assert (codes, verdict) == ([0, 0], ["good"]), output


def test_a_hanging_node_is_named_and_the_others_end(preflight):
    codes, output, verdict = preflight("--seconds", "15", "--free-gib", "0.001", ranks=[0, 2], world_size=3)
    assert (codes, verdict) == ([1, 1], ["bad", "bad beta"]), output
    assert "preflight: beta: no answer" in output and "Traceback" not in output


def test_a_full_disk_is_reported_with_its_size(preflight):
    codes, output, verdict = preflight("--free-gib", "1e9", ranks=[0], world_size=1)
    assert (codes, verdict) == ([1], ["bad", "bad alpha"])
    assert "GiB free, but 1e+09 GiB are required" in output


def test_an_error_in_the_recipe_is_not_blamed_on_a_node(preflight):
    codes, output, verdict = preflight("--refine.layr", "3", ranks=[0], world_size=1)
    assert (codes, verdict) == ([2], ["user"])
    assert "did you mean refine.layer" in output.lower()


def test_a_missing_gpu_is_named():
    if Path("/dev/nvidia0").exists():
        pytest.skip("there are GPUs here")
    place = Place(rank=0, world_size=1, local_rank=0, ranks_per_node=1, gpus_per_node=1, nodes=["alpha"])
    assert "0 GPUs visible" in check_this_rank(place, Path(os.curdir), 0)["problems"][0]
