"""The stage-2 benchmark runs and writes well-formed rows; its speed is not tested."""

import argparse
import re
import sys

import pytest
from scripts import FOLDER, rows_of


@pytest.fixture
def align_step(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import align_step

    return align_step


@pytest.mark.slow
def test_padded_and_packed_steps_have_equal_losses(tmp_path):
    options = ["--tiny", "--arms", "ours-padded,ours-packed", "--warmup", "1", "--steps", "2"]
    padded, packed = rows_of(tmp_path / "rows.csv", "benchmarks/align_step.py", *options)
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
def test_a_failed_arm_has_a_row_with_the_reason(align_step, monkeypatch, tmp_path, model, budget, status):
    monkeypatch.setattr(sys, "argv", ["align_step.py", "--tiny", "--batch", "2"])
    (tmp_path / model).mkdir(exist_ok=True)
    options = argparse.Namespace(model=str(tmp_path / model), shape="tiny", budget=budget, verbose=False)
    row = align_step.Arm(options, "ours-padded").measure(options)
    assert list(row) == ["status"] and re.match(status, row["status"])


def test_flop_equal_those_that_pytorch_counts(align_step, tmp_path):
    """PyTorch counts the whole attention matrix, of which a causal model needs half."""
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


def test_shapes_have_the_published_numbers_of_parameters(align_step):
    from shapes import config_of, largest_that_fits, parameters

    published = {"smollm2-135m": 134.5e6, "qwen2.5-0.5b": 494e6, "qwen2.5-1.5b": 1.54e9, "qwen2.5-3b": 3.09e9}
    for name, count in {**published, "qwen2.5-7b": 7.62e9, "llama-3-8b": 8.03e9}.items():
        assert parameters(config_of(name)) == pytest.approx(count, rel=0.005)
    assert largest_that_fits("qwen2.5", 141e9) == "qwen2.5-3b"
    assert largest_that_fits("qwen2.5", 24e9) == "qwen2.5-0.5b"
