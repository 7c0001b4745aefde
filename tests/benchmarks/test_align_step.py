"""The stage-2 benchmark runs from end to end and writes well-formed rows; how fast it is, is no test."""

import argparse
import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import one_thread_environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def align_step(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import align_step

    return align_step


def test_rows_of_padded_and_packed_steps_come_out_with_equal_losses(tmp_path):
    path = tmp_path / "rows.csv"
    options = ["--tiny", "--arms", "ours-padded,ours-packed", "--warmup", "1", "--steps", "2", "--csv", path]
    done = subprocess.run(
        [sys.executable, "benchmarks/align_step.py", *options],
        cwd=ROOT,
        env=one_thread_environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with path.open(newline="") as stream:
        padded, packed = csv.DictReader(stream)
    for row in (padded, packed):
        assert row["status"] == "ok" and row["commit"] and row["device"] and row["shape"] == "tiny"
        assert 0 < float(row["step_seconds_q25"]) <= float(row["step_seconds_median"]) <= float(row["step_seconds_q75"])
        assert len(row["losses"].split()) == 3
    assert padded["supervised_tokens"] == packed["supervised_tokens"] and padded["tokens"] == packed["tokens"]
    assert 0 < float(packed["loss_difference"]) < 1e-5


@pytest.mark.parametrize(
    ("model", "budget", "status"),
    [("", 1, "out of time: 1 s"), pytest.param("nowhere", 200, "failed: .*nowhere", marks=pytest.mark.slow)],
)
def test_an_arm_that_does_not_end_well_is_a_row_that_says_so(align_step, monkeypatch, tmp_path, model, budget, status):
    monkeypatch.setattr(sys, "argv", ["align_step.py", "--tiny", "--batch", "2"])
    (tmp_path / model).mkdir(exist_ok=True)
    options = argparse.Namespace(model=str(tmp_path / model), shape="tiny", budget=budget, verbose=False)
    row = align_step.Arm(options, "ours-padded").measure(options)
    assert list(row) == ["status"] and re.match(status, row["status"])


def test_flop_are_those_of_the_matrix_products(align_step, tmp_path):
    """Against PyTorch's own count; it takes attention's whole square, of which a causal model needs half."""
    import torch
    from shapes import block_flop, config_of, head_flop
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    config, length = config_of("tiny"), 24
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, length, dtype=torch.long), use_cache=False)
    ours = config.num_hidden_layers * block_flop(config, [length]) + head_flop(config, length)
    square = config.num_hidden_layers * 2 * length**2 * config.num_attention_heads * config.head_dim
    rotation = counter.get_total_flops() - ours - square
    assert 0 <= rotation <= 0.01 * ours


def test_shapes_have_the_sizes_of_their_models(align_step):
    from shapes import config_of, largest_that_fits, parameters

    published = {"smollm2-135m": 134.5e6, "qwen2.5-0.5b": 494e6, "qwen2.5-1.5b": 1.54e9, "qwen2.5-3b": 3.09e9}
    for name, count in {**published, "qwen2.5-7b": 7.62e9, "llama-3-8b": 8.03e9}.items():
        assert parameters(config_of(name)) == pytest.approx(count, rel=0.005)
    assert largest_that_fits("qwen2.5", 141e9) == "qwen2.5-3b"
    assert largest_that_fits("qwen2.5", 24e9) == "qwen2.5-0.5b"
