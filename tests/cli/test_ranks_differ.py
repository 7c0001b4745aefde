"""If ranks read different data or models, the run ends before training with the rank and the data named."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import ROWS, write_recipe, write_rows
from tiny import make_model, one_thread_environment

TRAIN = Path(__file__).parents[2] / "train.py"


@pytest.fixture
def nodes(tmp_path):
    """Two folders, as on the disks of two nodes, with the same model, data and recipe with relative paths."""
    first, second = tmp_path / "first", tmp_path / "second"
    make_model(first / "model", layers=2, tied=False)
    recipe = write_recipe(first, Path("model"))
    text = recipe.read_text().replace(f"{first}/runs", str(tmp_path / "runs")).replace(f"{first}/", "")
    recipe.write_text(text)
    shutil.copytree(first, second)
    return first, second


def launch(nodes, *options):
    """Start a rank in each folder; returns the exit codes and the output of rank 0."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    processes = []
    for rank, folder in enumerate(nodes):
        group = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        environment = one_thread_environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **group)
        command = [sys.executable, str(TRAIN), "tiny.yaml", *options]
        processes.append(
            subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    return [process.returncode for process in processes], errors[0]


def change_row(folder):
    rows = [dict(row) for row in ROWS["general"]]
    rows[2]["response"] = "There it is."
    write_rows(folder / "general.jsonl", rows)


def change_benchmark(folder):
    write_rows(folder / "asked.jsonl", [{"prompt": "count hours"}, *ROWS["asked"][1:]])


def change_template(folder):
    path = folder / "model" / "chat_template.jinja"
    path.write_text("{{ 'x' }}" + path.read_text())


def change_config(folder):
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 5.0}))


CHANGES = {
    change_row: "data set data.general ",
    change_benchmark: "data set asked ",
    change_template: "chat_template.jinja of the model",
    change_config: "config.json of the model",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_inputs_on_a_rank_are_refused(nodes, tmp_path, change):
    change(nodes[1])
    codes, error = launch(nodes, "--stages", "[refine,align,evaluate]")
    assert codes == [2, 2], error
    message = error.split("error: ")[-1]
    assert message.startswith(f"rank 1 on node {os.uname().nodename} has another {CHANGES[change]}"), message
    assert not (tmp_path / "runs" / "run" / "refine").exists()


def test_a_row_that_only_one_rank_cannot_encode(nodes):
    write_rows(nodes[1] / "toxic.jsonl", [{**row, "prompt": row["prompt"] * 500} for row in ROWS["toxic"]])
    codes, error = launch(nodes, "--stages", "[refine]", "--refine.max_length", "100", "--dry-run")
    assert codes == [2, 2] and "rank 1 on node" in error
