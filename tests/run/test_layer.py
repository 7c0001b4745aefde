"""refine.layer: auto is chosen by the layer probe before stage 1, or by a rule where the probe cannot be run."""

import pytest
import torch
import yaml
from processes import as_ranks, run_command
from small_runs import write_recipe, write_rows
from tiny import make_model

from dcr_ds.cli import main
from dcr_ds.engine.resolve import refine_learning_rate
from dcr_ds.models.load import load_causal_lm


@pytest.fixture
def recipe(tmp_path):
    """A recipe of a tiny model and 60 prompts per set, whose layer is auto."""
    path = write_recipe(tmp_path, make_model(tmp_path / "model", layers=5, tied=False))
    for name, verb in (("seemingly_toxic", "paint"), ("toxic", "wreck")):
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": f"{verb} item {index}"} for index in range(60)])
    path.write_text(path.read_text().replace("layer: 1, ", "layer: auto, "))
    return path


def saved_layer(recipe) -> int:
    return yaml.safe_load((recipe.parent / "runs/run/recipe.yaml").read_text())["refine"]["layer"]


def test_the_probe_chooses_a_layer_and_a_resumed_run_keeps_it(recipe, capsys):
    assert main(["train", str(recipe), "--stages", "[refine]"]) == 0
    err = capsys.readouterr().err
    layer = saved_layer(recipe)
    assert f"refine.layer: {layer} (held-out AUC 1.000 of the class means" in err and 2 <= layer <= 4
    assert main(["train", str(recipe), "--stages", "[refine, align]"]) == 0
    assert "held-out AUC 1.000 of" not in capsys.readouterr().err and saved_layer(recipe) == layer


def test_the_first_layer_that_separates_is_chosen(recipe, capsys):
    """The last token attends to the prompt only from block 4 on, as attention is zero in the blocks below."""
    folder = make_model(recipe.parent / "model", layers=7, tied=False)
    model = load_causal_lm(folder, torch.float32, "eager", None)
    for block in model.model.layers[:3]:
        block.self_attn.o_proj.weight.data.zero_()
    model.save_pretrained(folder)
    assert main(["train", str(recipe), "--stages", "[refine]"]) == 0
    assert saved_layer(recipe) == 4


def test_two_ranks_train_the_layer_that_rank_0_chose(recipe):
    done = run_command(*as_ranks(2), "train.py", recipe, "--stages", "[refine]")
    assert done.stderr.count("refine.layer: ") == 1
    assert f"refine.layer: {saved_layer(recipe)} (held-out AUC 1.000 of the class means" in done.stderr


def test_too_few_prompts_fall_back_to_the_rule(recipe, capsys):
    """Prompts that are too long for stage 1 do not count."""
    for name, verb in (("seemingly_toxic", "paint"), ("toxic", "wreck")):
        numbers = [*range(12), *("9" * 500 + str(index) for index in range(60))]
        write_rows(recipe.parent / f"{name}.jsonl", [{"prompt": f"{verb} item {number}"} for number in numbers])
    assert main(["train", str(recipe), "--stages", "[refine]"]) == 0
    assert (
        "refine.layer: 4 (0.8 of the model's 5 blocks, without a layer probe: 10 training prompts of a set"
        in capsys.readouterr().err
    )


def test_a_model_that_is_too_large_falls_back_to_the_rule(recipe, capsys, monkeypatch):
    monkeypatch.setattr("dcr_ds.run.layer.MEMORY_SHARE", 1e-9)
    assert main(["train", str(recipe), "--stages", "[refine]"]) == 0
    assert "without a layer probe: the weights take" in capsys.readouterr().err


def test_a_dry_run_loads_no_weights_and_prints_the_notes_of_all_sets(recipe, capsys):
    with (recipe.parent / "toxic.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"prompt": "wr\n{"prompt": " wreck item 3"}\n')
    assert main(["train", str(recipe), "--stages", "[refine]", "--dry-run"]) == 0
    output = capsys.readouterr().err
    assert "0.8 of the model's 5 blocks" in output
    assert "data: data.toxic: 60 rows from " in output and "toxic.jsonl\n" in output
    assert "data: data.toxic: note: 1 of 62 prompts left out: not valid JSON" in output
    assert "data: data.toxic: note: 1 of 62 prompts left out: repeated (line 62)\n" in output


def test_the_learning_rate_falls_with_the_width():
    assert refine_learning_rate(576, lora=False)[0] == 2.5e-4
    assert refine_learning_rate(4096, lora=False)[0] == 3.5e-5
    assert refine_learning_rate(4096, lora=True)[0] == 3.5e-4
    assert refine_learning_rate(64, lora=False)[0] == 2.5e-4


def test_auto_layer_needs_the_stage_refine(recipe, capsys):
    assert main(["train", str(recipe), "--align.learning_rate", "auto"]) == 2
    assert "align.learning_rate: auto is for refine" in capsys.readouterr().err
