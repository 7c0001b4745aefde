"""DPO and KTO through `train`: the loss falls, an interrupted run resumes, and bad data is an error."""

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
    return command_of(recipe, tmp_path_factory, "dpo", batch=2)


def command_of(recipe, tmp_path_factory, method: str, batch: int) -> list[str]:
    """Twelve steps, four epochs, of a method on six pairs; KTO has two answers of each."""
    path = write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", PAIRS)
    options = {
        "stages": "[align]", "align.method": method, "data.preferences": path, "align.global_batch": batch,
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
    log = interrupt_and_resume(command, tmp_path, uninterrupted, capsys)
    assert "reference: 6 pairs, read from" in log


def test_kto_learns_the_labels_and_resumes_bit_for_bit(recipe, tmp_path_factory, tmp_path, capsys):
    """Its KL estimate depends on the samples of the step alone, not on what the process did before."""
    command = command_of(recipe, tmp_path_factory, "kto", batch=4)
    uninterrupted = tmp_path / "uninterrupted" / "run" / "align"
    assert main([*command, "--output", str(uninterrupted.parents[1])]) == 0
    assert "6 desirable + 6 undesirable answers" in capsys.readouterr().err
    rows = metrics(uninterrupted)
    assert len(rows) == STEPS and rows[0]["loss"] == pytest.approx(0.5, abs=1e-3) and rows[0]["kl"] < 1e-3
    assert rows[-1]["loss"] < 0.45 and any(row["kl"] > 0.01 for row in rows)
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert (summary["num_desirable"], summary["num_undesirable"], summary["steps"]) == (6, 6, STEPS)
    log = interrupt_and_resume(command, tmp_path / "interrupted", uninterrupted, capsys)
    assert f"reference: {12 + STEPS * 4} answers, read from" in log
    assert [row["kl"] for row in metrics(tmp_path / "interrupted/run/align")] == [row["kl"] for row in rows]


@pytest.mark.parametrize("method", ["kto", "orpo", "simpo"])
def test_methods_train_packed_adapters(recipe, tmp_path_factory, tmp_path, method):
    command = command_of(recipe, tmp_path_factory, method, batch=4 if method == "kto" else 2)
    options = {"align.adapter": "lora", "align.packing": "true", "align.max_length": 100, "align.epochs": 2}
    options |= {"align.learning_rate": 1e-2, "output": tmp_path}
    assert main([*command, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]) == 0
    rows = metrics(tmp_path / "run" / "align")
    assert len(rows) == STEPS / 2 and rows[-1]["loss"] < rows[0]["loss"]
    assert (tmp_path / "run/align/reference.safetensors").is_file() == (method == "kto")


def interrupt_and_resume(command, output, uninterrupted, capsys) -> str:
    """Stop a run after three steps and resume it: rows and model are those of the other run. Returns the second log."""
    folder = output / "run" / "align"

    def stop_after_three_steps():
        path = folder / "metrics.jsonl"
        while not path.is_file() or path.read_text().count("\n") < 3:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_after_three_steps, daemon=True)
    stopper.start()
    assert main([*command, "--output", str(output)]) == 75
    stopper.join()
    capsys.readouterr()
    assert main([*command, "--output", str(output)]) == 0
    log = capsys.readouterr().err
    assert "resuming from" in log
    assert [row["loss"] for row in metrics(folder)] == [row["loss"] for row in metrics(uninterrupted)]
    resumed, expected = (load_file(stage / "model" / "model.safetensors") for stage in (folder, uninterrupted))
    assert all((resumed[name] == expected[name]).all() for name in resumed)
    return log


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


def test_labels_of_one_class_and_a_single_answer_per_step_are_errors_for_kto(command, failing, tmp_path):
    rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in PAIRS]
    path = write_rows(tmp_path / "answers.jsonl", rows)
    kto = ["--align.method", "kto", "--output", tmp_path]
    message = failing(*command[2:], *kto, "--data.preferences", path)
    assert message.startswith(f"data.preferences: {path}: all 6 answers are desirable; KTO needs both labels")
    assert "align.global_batch: KTO needs at least 2" in failing(*command[2:], *kto, "--align.global_batch", "1")
    assert "align.loss_on: all is for align.method: sft or orpo; KTO compares answers" in failing(
        *command[2:], *kto, "--align.loss_on", "all"
    )


def test_packed_rows_must_hold_a_pair(command, failing, tmp_path):
    packed = ["--align.packing", "true", "--align.packed_length", "600", "--output", tmp_path]
    message = failing(*command[2:], *packed)
    assert "align.packed_length: 600 is less than twice align.max_length (512), the longest pair" in message
