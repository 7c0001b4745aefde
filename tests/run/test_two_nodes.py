"""Two ranks that act as two nodes: each has a working directory of its own, so that relative paths are local to it."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import free_port
from small_runs import the_error
from tiny import one_thread_environment

RANK = """
import sys
from dcr_ds.engine import distributed
distributed.VISIBLE_SECONDS = 1.0
from dcr_ds.engine.checkpoint import checkpoints
checkpoints.VISIBLE_SECONDS = 1.0
checkpoints.SLOW_DISK = 1e-3
from dcr_ds.cli import train_as_rank
train_as_rank()
"""
LONGEST_SECONDS = 120


@pytest.fixture
def nodes(tmp_path) -> list[Path]:
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
    return folders


@pytest.fixture
def run_on(place, nodes):
    """Run `train` with one rank per node, with the environment of each; return the exit code and stderr of rank 0."""

    def run(*arguments: str, environments: tuple[dict, dict] = ({}, {})) -> tuple[int, str]:
        port = free_port()
        command = [sys.executable, "-c", RANK, str(place / "tiny.yaml"), "--stages", "[refine]", *arguments]
        processes = []
        for rank, (node, environment) in enumerate(zip(nodes, environments, strict=True)):
            variables = {"RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2"}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | environment
            processes.append(
                subprocess.Popen(
                    command, cwd=node, env=one_thread_environment(**variables), text=True,
                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        outputs = [process.communicate(timeout=LONGEST_SECONDS)[1] for process in processes]
        return processes[0].returncode, outputs[0]

    return run


def test_run_folder_local_to_each_node_is_an_error(run_on, nodes):
    code, stderr = run_on("--output", "runs")
    message = the_error(stderr)
    assert code == 2 and "rank 1 on node" in message and "all nodes must share the run folder" in message
    assert not any(path.name == "recipe.yaml" for node in nodes for path in node.rglob("*"))


def test_stage_folder_local_to_each_node_is_detected(run_on, place, nodes):
    """refine/ is a link to scratch space, which is another folder on each node."""
    for node in nodes:
        (node / "scratch").mkdir()
    run = place / "runs" / "run"
    run.mkdir(parents=True)
    (run / "refine").symlink_to("/proc/self/cwd/scratch")
    zero = "ds_configs/zero2.json"
    code, stderr = run_on("--deepspeed", zero, "--refine.max_steps", "3", "--checkpoint.every_steps", "1")
    message = the_error(stderr)
    assert code == 2 and "not visible to rank 0" in message and "zero_pp_rank_1" in message
    assert "all nodes must share the run folder" in message
    assert not list(nodes[0].rglob("manifest.json"))


def test_rank_0_decides_that_little_time_is_left(run_on, place):
    """The clock of rank 1 is past the deadline, and the estimate of a save is far longer than the time left."""
    later, past = ({"DCR_DS_DEADLINE": str(time.time() + seconds)} for seconds in (600, -600))
    options = ("--refine.max_steps", "3", "--refine.target_gap", "2", "--refine.patience", "9")
    code, stderr = run_on(*options, environments=(later, past))
    assert code == 0, stderr
    code, stderr = run_on(*options, "--redo", "all", environments=(past, later))
    assert code == 75 and "stopped at step 1" in stderr
    rows = (place / "runs" / "run" / "refine" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1]


def test_data_that_differs_between_nodes_is_refused(run_on, place, nodes):
    for node, word in zip(nodes, ("wreck", "ruin"), strict=True):
        rows = (place / "toxic.jsonl").read_text().replace("wreck", word)
        (node / "toxic.jsonl").write_text(rows)
    code, stderr = run_on("--data.toxic", "toxic.jsonl")
    message = the_error(stderr)
    assert code == 2 and message.startswith("rank 1 on node") and "another data set data.toxic (toxic.jsonl)" in message


def test_model_that_differs_between_nodes_is_refused(run_on, place, nodes):
    for node in nodes:
        shutil.copytree(place / "model", node / "model")
    weights = nodes[1] / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, stderr = run_on("--model.source", "model")
    assert code == 2 and "another model.safetensors of the model model than rank 0" in the_error(stderr)
