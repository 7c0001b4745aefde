"""An export equals what the stage itself writes, for every ZeRO stage and number of ranks of the checkpoint."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from processes import as_ranks, run_command
from safetensors.torch import load_file
from tiny import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcr_ds.cli import main
from dcr_ds.models.check import check_model
from dcr_ds.models.checkpoint_files import weight_files
from dcr_ds.models.hashes import weights_hash

STEP = "step-00000002"
SMALL_WEIGHTS = 8192  # bytes of norms and biases that a rank may hold besides its part and the weight being read


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("source") / "tiny", tied=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, source) -> Path:
    """Runs on two ranks, stopped after two steps: refine-zeroN, full-parameter, and align-zeroN, with LoRA."""
    folder = tmp_path_factory.mktemp("runs")
    run_command(*as_ranks(2), Path(__file__).with_name("save_checkpoints.py"), source, folder)
    return folder


@pytest.fixture
def export(tmp_path, capsys):
    def run(*arguments, code=0):
        capsys.readouterr()
        assert main(["export", *map(str, arguments), "--out", str(tmp_path / "out")]) == code
        assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out.partial.adapter").exists()
        return tmp_path / "out" if code == 0 else capsys.readouterr().err.removeprefix("error: ").strip()

    return run


def contents(folder):
    """The files of a folder, without the record of an export."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "exported.json"}


@pytest.mark.parametrize("zero", range(4))
def test_a_full_parameter_checkpoint_exports_to_the_model_of_the_stage(runs, source, export, zero):
    run = runs / f"refine-zero{zero}"
    out = export(run)
    assert contents(out) == contents(run / "expected" / "model")
    assert not torch.equal(
        *(load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"] for folder in (out, source))
    )
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 4
    assert AutoTokenizer.from_pretrained(out).chat_template


@pytest.mark.parametrize("zero", range(4))
def test_an_adapter_checkpoint_exports_to_the_adapter_of_the_stage(runs, source, export, zero):
    run = runs / f"align-zero{zero}"
    out = export(run / "align" / "checkpoints" / STEP)
    assert contents(out) == contents(run / "expected" / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), out)
    assert any(weight.abs().sum() > 0 for name, weight in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("zero", [0, 3])
def test_a_merged_adapter_checkpoint_exports_to_the_model_of_the_stage(runs, export, zero):
    run = runs / f"align-zero{zero}"
    assert contents(export(run, "--merge", "--stage", "align")) == contents(run / "expected" / "model")


def test_an_adapter_is_merged_or_copied(runs, export):
    expected = runs / "align-zero0" / "expected"
    shutil.rmtree(export(expected / "adapter"))
    assert contents(export(expected / "adapter", "--merge")) == contents(expected / "model")


@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize(("stage", "name"), [("refine", "model"), ("align", "model"), ("align", "adapter")])
def test_two_ranks_write_what_one_writes_from_memory(runs, zero, stage, name):
    run = runs / f"{stage}-zero{zero}"
    assert contents(run / "streamed" / name) == contents(run / "expected" / name)


@pytest.mark.parametrize("stage", ["refine", "align"])
def test_no_rank_loads_the_whole_model_under_zero_3(runs, source, stage):
    """Rank 0 maps the file, and holds no more of it than the others: its part, and the weight that is being read."""
    for rank, mapped in ((0, (source / "model.safetensors").stat().st_size), (1, 0)):
        figures = json.loads((runs / f"{stage}-zero3" / stage / f"load-{rank}.json").read_text())
        half = figures["whole"] / 2
        assert half < figures["peak"] - mapped <= half + figures["largest"] + SMALL_WEIGHTS


@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize("name", ["sharded", "snapshot"])
def test_two_ranks_write_a_large_file_as_shards(runs, zero, name):
    run = runs / f"refine-zero{zero}"
    files = weight_files(run / name)
    assert len(files) > 3 and not (run / name / "model.safetensors").exists()
    assert max(file.stat().st_size for file in files) < 45_000
    assert weights_hash(run / name) == weights_hash(run / "expected" / "model")
    assert check_model(run / name) == []
    expected = load_file(run / "expected" / "model" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(run / name)
    assert all(torch.equal(weight, expected[key]) for key, weight in model.state_dict().items())


@pytest.mark.parametrize("zero", range(4))
def test_all_ranks_report_the_file_that_one_cannot_write(runs, zero):
    run = runs / f"refine-zero{zero}"
    messages = {(run / f"error-{rank}").read_text() for rank in range(2)}
    assert len(messages) == 1
    assert re.search(r"full.partial/model-\d+-of-\d+.safetensors: cannot be written \(File too large\)", messages.pop())
    assert not (run / "full").exists()


def test_an_older_checkpoint_is_exported_by_name(runs, export):
    newest = contents(runs / "refine-zero2" / "expected" / "model")
    older = export(runs / "refine-zero2" / "refine" / "checkpoints" / "step-00000001")
    assert contents(older)["model.safetensors"] != newest["model.safetensors"]


@pytest.fixture
def done(runs, tmp_path):
    """A run whose stage 2 is finished."""
    run = shutil.copytree(runs / "align-zero0", tmp_path / "done")
    shutil.rmtree(run / "align")
    (run / "expected").rename(run / "align")
    (run / "align" / "summary.json").write_text("{}")
    return run


def test_a_finished_stage_is_copied(done, export):
    copied = export(done)
    assert contents(copied) == contents(done / "align" / "adapter")
    assert json.loads((copied / "exported.json").read_text()) == {"source": str(done / "align")}
    shutil.rmtree(copied)
    assert contents(export(done / "align", "--merge")) == contents(done / "align" / "model")


def test_the_control_is_exported_like_the_aligned_model(runs, done, export, tmp_path):
    unfinished = shutil.copytree(runs / "align-zero0", tmp_path / "unfinished")
    for run in (unfinished, done):
        (run / "align").rename(run / "control")
    copied = export(done, "--stage", "control")
    assert contents(copied) == contents(done / "control" / "adapter")
    shutil.rmtree(copied)
    assert contents(export(unfinished / "control" / "checkpoints" / STEP, "--merge")) == contents(
        unfinished / "expected" / "model"
    )


def test_an_adapter_is_not_merged_onto_another_base(runs, export, tmp_path):
    other = make_model(tmp_path / "other", tied=False, seed=1)
    message = export(runs / "align-zero0" / "expected" / "adapter", "--merge", "--base", other, code=2)
    assert "was trained on other weights than those of" in message and str(other) in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["", "align/adapter"])
def test_the_copy_of_an_adapter_names_another_base(done, export, part):
    copied = contents(export(done / part, "--base", "owner/base"))
    config, record = json.loads(copied["adapter_config.json"]), json.loads(copied["base.json"])
    assert config["base_model_name_or_path"] == record["source"] == "owner/base"
    assert copied["adapter_model.safetensors"] == contents(done / "align" / "adapter")["adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("", ["--merge", "--base", "owner/base"], "align/model is a whole model, which needs no base"),
        ("align/model", ["--base", "owner/base"], "align/model is a whole model, which needs no base"),
        ("align/adapter", ["--stage", "refine"], "--stage refine: .* belongs to align"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(done, export, tmp_path, part, options, message):
    assert re.search(message, export(done / part, *options, code=2))
    assert not (tmp_path / "out").exists()


def test_a_base_that_does_not_exist_is_not_named(done, export, tmp_path):
    assert "--base not-there: no such folder, and no hub id" in export(done, "--base", "not-there", code=2)
    assert not (tmp_path / "out").exists()


def damage(run):
    file = next((run / "refine" / "checkpoints" / STEP).glob("*optim_states.pt"))
    file.write_bytes(file.read_bytes()[:-10])


def test_a_checkpoint_is_not_exported_onto_other_weights(runs, source, export, tmp_path):
    """The weights in model.source were replaced after the run: the model would mix blocks of both."""
    run = shutil.copytree(runs / "refine-zero2", tmp_path / "run")
    identity = run / "refine" / "identity.json"
    identity.write_text(json.dumps({"weights": {"sha256": "0" * 64}}))
    assert f"{source}: has other weights than those that refine of {run} began with" in export(run, code=2)
    identity.write_text(json.dumps({"weights": {"sha256": weights_hash(source)}}))
    export(run)


def test_a_damaged_checkpoint_is_skipped_and_an_error_if_named(runs, export, tmp_path):
    run = shutil.copytree(runs / "refine-zero3", tmp_path / "run")
    damage(run)
    message = export(run / "refine" / "checkpoints" / STEP, code=2)
    assert f"{STEP}: incomplete" in message and "is damaged" in message
    assert contents(export(run))["model.safetensors"] != contents(run / "expected" / "model")["model.safetensors"]


def test_a_recipe_that_does_not_fit_the_checkpoint_is_named(runs, export, tmp_path):
    run = shutil.copytree(runs / "refine-zero1", tmp_path / "run")
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values["refine"]["layer"] = 3
    (run / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert "has no layers.2." in export(run, code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "not a run folder, a checkpoint in one"),
        (["{runs}/refine-zero0", "--stage", "align"], "no results of align"),
        (["{runs}/refine-zero0/refine", "--stage", "align"], "belongs to refine; leave --stage out"),
        (["{runs}/refine-zero0/refine/checkpoints/step-00000009"], "no such folder"),
        (["{runs}/refine-zero0", "--push", "nobody/tiny"], "--push nobody/tiny: the hub cannot be reached"),
        (["{runs}/refine-zero0", "--push", "a b/c"], "--push a b/c: not a hub id (Repo id must"),
        (["{runs}/refine-zero0", "--push", "tiny"], "--push tiny: not a hub id (the owner is missing)"),
        (["{runs}/refine-zero0", "--merged"], "unrecognized arguments: --merged"),
    ],
)
def test_bad_arguments(runs, export, tmp_path, arguments, message):
    assert message in export(*(word.format(runs=runs) for word in arguments), code=2)
    assert (tmp_path / "out").exists() is ("cannot be reached" in message)  # only the upload failed


def test_nothing_is_overwritten(runs, export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "exists, and nothing is overwritten" in export(runs / "refine-zero0", code=2)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
