"""DPO through `train`: the loss falls, an interrupted run resumes, and bad data is an error."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_runs import TOPICS, write_rows
from transformers import AutoModelForCausalLM

from dcr_ds.cli import main

PAIRS = [{"prompt": f"burn {topic}", "chosen": f"No {topic}.", "rejected": f"Yes, {topic}!"} for topic in TOPICS]
STEPS = 12


@pytest.fixture(scope="module")
def command(recipe, tmp_path_factory) -> list[str]:
    """A run of stage 2 with DPO on six pairs, two per step, with a checkpoint every second step."""
    path = write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", PAIRS)
    options = {
        "stages": "[align]", "align.method": "dpo", "data.preferences": path, "align.global_batch": 2,
        "align.epochs": 4, "align.learning_rate": 1e-3, "checkpoint.every_steps": 2,
    }  # fmt: skip
    return ["train", recipe, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    assert main([*command, "--output", str(output)]) == 0
    return output / "run" / "align"


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_chosen_answers_become_more_likely(uninterrupted):
    rows = metrics(uninterrupted)
    assert len(rows) == STEPS
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and rows[0]["margin"] == pytest.approx(0, abs=1e-3)
    assert rows[-1]["loss"] < 0.6 and rows[-1]["accuracy"] == 1.0
    for row in rows:
        assert row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"], abs=1e-6)
        assert row["tokens"] > 0 and 0 < row["supervised_tokens"] < row["tokens"]
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert (summary["num_pairs"], summary["steps"]) == (6, STEPS)
    AutoModelForCausalLM.from_pretrained(uninterrupted / "model")


def test_an_interrupted_run_resumes_bit_for_bit_with_its_reference(command, uninterrupted, tmp_path, capsys):
    folder = tmp_path / "run" / "align"

    def stop_after_three_steps():
        path = folder / "metrics.jsonl"
        while not path.is_file() or path.read_text().count("\n") < 3:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_after_three_steps, daemon=True)
    stopper.start()
    assert main([*command, "--output", str(tmp_path)]) == 75
    stopper.join()
    capsys.readouterr()
    assert main([*command, "--output", str(tmp_path)]) == 0
    log = capsys.readouterr().err
    assert "reference: 6 pairs, read from" in log and "resuming from" in log
    assert [row["loss"] for row in metrics(folder)] == [row["loss"] for row in metrics(uninterrupted)]
    resumed, expected = (load_file(stage / "model" / "model.safetensors") for stage in (folder, uninterrupted))
    assert all((resumed[name] == expected[name]).all() for name in resumed)


def test_equal_answers_are_an_error_that_names_their_lines(command, failing, tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [*PAIRS, {**PAIRS[0], "rejected": PAIRS[0]["chosen"]}])
    strict = ["--data.preferences.max_bad_share", "0"]
    message = failing(*command[2:], "--data.preferences", path, *strict, "--output", tmp_path)
    assert message.startswith(f"data.preferences: {path}, line 7: chosen and rejected are the same answer; correct")
    assert not (tmp_path / "run").exists()


def test_a_pair_with_an_evaluated_prompt_is_an_error(command, failing, tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [*PAIRS, {**PAIRS[0], "prompt": "count apples"}])
    message = failing(*command[2:], "--data.preferences", path, "--output", tmp_path, "--stages", "[align, evaluate]")
    assert "overlap" in message and "data.preferences" in message


def test_packed_rows_must_hold_a_pair(command, failing, tmp_path):
    packed = ["--align.packing", "true", "--align.packed_length", "600", "--output", tmp_path]
    message = failing(*command[2:], *packed)
    assert "align.packed_length: 600 is less than twice align.max_length (512), the longest pair" in message
