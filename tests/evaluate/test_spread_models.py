"""A model that two ranks hold together gives the results of a whole one, also after it was killed."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from processes import ROOT, run_command, torchrun
from small_runs import snapshot, write_recipe
from spread_ranks import compare_in_child, evaluate, evaluate_in_child, load_in_child
from tiny import make_model, one_thread_environment
from tiny_models import ONE_RANK, PROMPTS, run_children

from dcr_ds.data import Benchmark, PromptSet
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.evaluate.run import _prepare_benchmark
from dcr_ds.files import read_json, read_jsonl
from dcr_ds.recipe import EvaluateSection
from dcr_ds.recipe.layout import ModelFolder

SPREAD = ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma2", "gemma3_text", "phi3"]


def assert_equal_log_odds(one: Path, other: Path) -> None:
    for expected, row in zip(read_jsonl(one), read_jsonl(other), strict=True):
        assert row["id"] == expected["id"]
        for figure in ("log_odds", "margin", "first_token"):
            assert row[figure] == pytest.approx(expected[figure], abs=1e-5)


def test_two_copies_of_two_ranks_complete_what_one_began(model_folder, tmp_path):
    """One copy is killed after a batch; two copies keep its rows and end with the results of a whole model."""
    whole, spread = tmp_path / "whole", tmp_path / "spread"
    spread.mkdir()
    evaluate(model_folder, whole, ONE_RANK, 1)
    assert run_children(evaluate_in_child, 2, model_folder, spread, tmp_path / "first", 1) == [-9, -9]
    (begun,) = spread.rglob("generations.rank*.jsonl")  # only one rank of a copy writes
    kept = read_jsonl(begun)
    assert 0 < len(kept) < len(PROMPTS)
    assert run_children(evaluate_in_child, 4, model_folder, spread, tmp_path / "second", 0) == [0, 0, 0, 0]
    assert not list(spread.rglob("generations.rank*"))
    shares = [read_json(spread / f"rank{rank}.json") for rank in range(4)]
    assert max(shares) <= 0.6, shares

    one, two = (read_jsonl(home / "tiny" / "generations.jsonl") for home in (whole, spread))
    assert all(row in two for row in kept)
    answers = [[(row["id"], row["completion"], row["tokens"], row["finish"]) for row in rows] for rows in (one, two)]
    assert answers[0] == answers[1] and len(answers[0]) == len(PROMPTS)
    assert_equal_log_odds(*(home / "tiny" / "log_odds.jsonl" for home in (whole, spread)))
    one, two = (read_json(home / "general_loss.json") for home in (whole, spread))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert (two["n"], two["tokens"]) == (one["n"], one["tokens"])


@pytest.mark.slow
def test_every_architecture_gives_the_same_logits_and_answers(tmp_path):
    folders = {kind: make_model(tmp_path / kind, kind, tied=kind != "qwen2", vocab_size=301) for kind in SPREAD}
    assert run_children(compare_in_child, 2, folders, tmp_path / "out", tmp_path / "r") == [0, 0]
    compared = read_json(tmp_path / "out")
    assert set(compared) == set(SPREAD)
    for kind, (difference, is_equal) in compared.items():
        assert difference < 1e-4 and is_equal, kind


def test_a_rank_reads_and_holds_its_part_of_the_model(tmp_path):
    """The peak of resident memory while a model of 200 MB is loaded."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 4}
    folder = make_model(tmp_path / "big", "qwen2", layers=12, tied=False, head_dim=64, vocab_size=4000, **sizes)
    small = make_model(tmp_path / "small", "qwen2")  # loaded first: imports are not counted
    assert run_children(load_in_child, 2, [small, folder], tmp_path, tmp_path / "r") == [0, 0]
    whole = (folder / "model.safetensors").stat().st_size
    assert whole > 200e6
    shares = [int((tmp_path / f"rank{rank}").read_text()) / whole for rank in range(2)]
    assert max(shares) <= 0.6, shares


def results(folder: Path) -> dict[str, tuple[int, str]]:
    """Hashes of the results by file, but not of the cost."""
    return {name: entry[1] for name, entry in snapshot(folder).items() if not name.endswith("cost.json")}


@pytest.mark.slow
def test_a_killed_rank_ends_all_ranks_and_the_same_command_resumes(tmp_path):
    model = make_model(tmp_path / "model")
    command = ["--no-python", "dcr-ds", "evaluate", f"tiny={model}", "--ranks-per-copy", "2"]
    command += ["--benchmarks", "builtin-toxic", "--limit", "15", "--max-new-tokens", "20", "--batch-size", "1"]
    command += ["--judge", "xstest_strings", "--out"]
    run_command(*torchrun(2), *command, tmp_path / "undisturbed")
    process = subprocess.Popen(
        [*torchrun(2), *command, str(tmp_path / "killed")], cwd=ROOT, env=one_thread_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(part.stat().st_size for part in (tmp_path / "killed").rglob("generations.rank0000.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in ranks)
    done = run_command(*torchrun(2), *command, tmp_path / "killed")
    assert "resuming after" in done.stderr
    homes = [tmp_path / name / "tiny" / "evaluate" for name in ("killed", "undisturbed")]
    assert results(homes[0]) == results(homes[1])


@pytest.mark.slow
def test_one_job_refines_aligns_evaluates_and_reports(tmp_path):
    """As recipes/qwen2.5-72b.yaml does: ZeRO-3 in training, then copies that two ranks hold together."""
    recipe = write_recipe(tmp_path, make_model(tmp_path / "model"))
    fields = ["--stages", "[refine,align,evaluate]", "--deepspeed", "ds_configs/zero3.json"]
    done = run_command(*torchrun(2), "train.py", recipe, *fields, "--evaluate.ranks_per_copy", "2", timeout=400)
    assert "evaluate aligned: copies of the model: 1, ranks per copy: 2" in done.stderr
    run = tmp_path / "runs" / "run"
    assert len(read_jsonl(run / "evaluate/aligned/asked/generations.jsonl")) == 2
    assert (run / "report" / "report.md").stat().st_size > 0


@pytest.mark.parametrize(("engine", "is_same"), [("transformers", False), ("vllm", True)])
def test_answers_of_a_server_do_not_depend_on_ranks_per_copy(tiny, model_folder, tmp_path, engine, is_same):
    model = EvaluatedModel("tiny", ModelFolder(tmp_path), model_folder, torch.float32, "sdpa")
    benchmark = Benchmark("tiny", "comply", PromptSet("tiny", "test", PROMPTS, "0" * 64))
    settings = EvaluateSection(engine=engine)
    hashes = {
        _prepare_benchmark(benchmark, tmp_path, tiny[1], settings, model.identity(size)).settings_hash
        for size in (1, 2, 4)
    }
    assert len(hashes) == (1 if is_same else 3)
