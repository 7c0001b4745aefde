"""Every tested architecture runs from recipe to export: refine, align, evaluate, and a model that can be loaded."""

import pytest
import torch
from processes import run_command
from small_runs import write_recipe
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.files import read_jsonl
from dcr_ds.models.architectures import TESTED


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TESTED)
def test_an_architecture_runs_from_recipe_to_export(tmp_path, model_type):
    packing = "false" if model_type.startswith("qwen3_5") else "true"
    recipe = write_recipe(tmp_path, make_model(tmp_path / "model", model_type, tied=model_type != "gpt_oss"))
    stages = ["--stages", "[refine,align,evaluate]", "--refine.packing", packing, "--align.packing", packing]
    run_command("python", "train.py", recipe, *stages)
    run = tmp_path / "runs" / "run"
    assert len(read_jsonl(run / "evaluate/aligned/asked/generations.jsonl")) == 2
    run_command("dcr-ds", "export", run, "--out", tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", attn_implementation="eager")
    assert torch.isfinite(exported(torch.arange(3, 40)[None]).logits).all()
