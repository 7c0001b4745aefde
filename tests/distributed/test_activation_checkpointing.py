"""Activation checkpointing does not change losses, even with frozen and sharded parameters, in both stages.

Stage 1 freezes the tied embeddings, stage 2 all but the adapter (transformers #47254, trl #2514).
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from processes import as_ranks, run_command
from safetensors.torch import load_file
from tiny import make_model

from dcr_ds.cli import main
from dcr_ds.engine.build import checkpoint_activations
from dcr_ds.models.load import load_causal_lm
from dcr_ds.plan.live_bytes import LiveBytes

STEPS = 3


def losses(run: Path, stage: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / stage / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    values = {
        "stages": ["refine", "align"],
        "model": {"source": str(make_model(folder / "model", tied=True))},
        "data": {"general": {"rows": 12}, "refusals": {"rows": 8}},
        "refine": {
            "layer": 2,
            "global_batch": 4,
            "max_steps": STEPS,
            "retain_batch": 2,
            "learning_rate": 1e-3,
            "on_failure": "continue",
        },
        "align": {"global_batch": 7, "learning_rate": 1e-3, "adapter": "lora"},
        "output": str(folder / "runs"),
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_activation_checkpointing_under_zero3_gives_the_same_losses(recipe):
    runs = recipe.parent / "runs"
    recomputing = ["--deepspeed", "ds_configs/zero3.json", "--model.activation_checkpointing", "true"]
    run_command(*as_ranks(2), "train.py", recipe, "--name", "recomputed", *recomputing)
    assert main(["train", str(recipe), "--name", "kept", "--deepspeed", "ds_configs/zero0.json"]) == 0
    for stage in ("refine", "align"):
        assert len(losses(runs / "kept", stage)) == STEPS
        assert losses(runs / "recomputed", stage) == pytest.approx(losses(runs / "kept", stage), rel=1e-4)
    adapter = load_file(runs / "recomputed" / "align" / "adapter" / "adapter_model.safetensors")
    assert all(tensor.numel() for tensor in adapter.values())
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)


def test_activation_checkpointing_uses_less_memory(recipe):
    def peak(recompute: bool) -> int:
        model = load_causal_lm(recipe.parent / "model", torch.float32, "sdpa", device=None).train()
        if recompute:
            checkpoint_activations(model)
        ids = torch.randint(3, 250, (4, 200))
        with LiveBytes() as live:
            before = live.alive
            model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
            return live.peak - before

    assert peak(recompute=True) < 0.6 * peak(recompute=False)
