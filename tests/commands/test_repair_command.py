"""`dcr-ds repair`: the run of recipes/repair.yaml from a given model, which it compares with and does not change."""

from pathlib import Path

import pytest
from small_runs import snapshot, the_error, write_recipe
from tiny import make_model

from dcr_ds.cli import main
from dcr_ds.commands.repair import _parse
from dcr_ds.files import read_jsonl
from dcr_ds.models.checkpoint_files import model_hash
from dcr_ds.recipe.layout import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with small data, a tiny model `given`, and a run of it."""
    folder = tmp_path_factory.mktemp("repair")
    write_recipe(folder, make_model(folder / "given", layers=2, tied=False))
    return folder


@pytest.fixture(scope="module")
def fields(folder) -> list[str]:
    """Fields for a run of seconds."""
    files = {f"data.{name}": folder / f"{name}.jsonl" for name in ("seemingly_toxic", "toxic", "general", "refusals")}
    values = {
        **{name: f"{{source: {file}}}" for name, file in files.items()},
        "evaluate.benchmarks": f"[{{name: asked, prompts: {folder / 'asked.jsonl'}, wanted: comply}}]",
        "evaluate.general": f"{{source: {folder / 'measured.jsonl'}}}",
        "evaluate.max_new_tokens": 2,
        "refine.max_steps": 1,
        "refine.on_failure": "continue",
        "output": folder / "runs",
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def repaired(folder, fields) -> RunFolder:
    before = snapshot(folder / "given")
    assert main(["repair", str(folder / "given"), *fields]) == 0
    assert snapshot(folder / "given") == before
    return RunFolder(folder / "runs" / "repair")


def test_the_given_model_is_the_base_of_the_report_and_the_control_is_aligned_without_refine(repaired, folder):
    assert all(repaired.stage(stage).is_done for stage in ("refine", "align", "control"))
    rows = read_jsonl(repaired.model("base").benchmark("asked").generations)
    assert rows and model_hash(folder / "given") != model_hash(repaired.stage("align").model)
    assert str(folder / "given") in repaired.recipe.read_text()
    assert all(repaired.model(name).benchmark("asked").scores.is_file() for name in ("base", "control", "aligned"))
    assert " DCR " in repaired.report.read_text()


def test_it_is_the_run_of_the_recipe(repaired, folder, fields, capsys):
    before = snapshot(repaired.stage("align").folder)
    capsys.readouterr()
    assert main(["train", "recipes/repair.yaml", "--model.source", str(folder / "given"), *fields]) == 0
    assert "align: already done" in capsys.readouterr().err
    assert snapshot(repaired.stage("align").folder) == before


def test_options_of_train(folder, fields, capsys):
    assert main(["repair", str(folder / "given"), *fields, "--name", "dry", "--dry-run"]) == 0
    assert "control: the same steps again" in "".join(capsys.readouterr())
    assert not (folder / "runs" / "dry").exists()
    words = ["--redo", "align", "--seed", "3"]
    assert _parse(["given", *words]) == ["recipes/repair.yaml", "--model.source", "given", *words]


def test_bad_input_is_refused_and_no_model_is_written_over(folder, fields, repaired, capsys):
    def error(*words: object) -> str:
        capsys.readouterr()
        assert main(["repair", *map(str, words)]) == 2
        return the_error(capsys.readouterr().err)

    given, models = folder / "given", [folder / "given", repaired.folder]
    before = [snapshot(model) for model in models]
    assert "name the MODEL" in error() and "name the MODEL" in error("--refine.layer", "1")
    assert "not a model folder" in error(folder / "none", *fields)
    assert "name it once" in error(given, *fields, "--model.source", given)
    for recipe in ("other.yaml", "recipes/smollm2-135m.yaml"):  # the second is the recipe that train takes by itself
        message = error(given, recipe, *fields)
        assert f"{recipe} follows the MODEL {given}" in message and "recipes/repair.yaml" in message
    message = error(repaired.folder, *fields)
    assert "is a run" in message and str(repaired.stage("align").model) in message
    assert "inside the model's folder" in error(given, *fields, "--output", given / "runs")
    own = repaired.stage("align").model
    assert "write over" in error(own, *fields) and "write over" in error(own, *fields, "--redo", "all")
    assert "refine began with something else" in error(make_model(folder / "other", layers=2), *fields)
    assert [snapshot(model) for model in models] == before


def test_an_adapter_is_to_be_merged_first(folder, fields, capsys):
    recipe = str(folder / "tiny.yaml")
    assert main(["train", recipe, "--stages", "[align]", "--align.adapter", "lora", "--name", "lora"]) == 0
    adapter = RunFolder(folder / "runs" / "lora").stage("align").adapter
    assert main(["repair", str(adapter), *fields]) == 2
    assert f"dcr-ds export {adapter} --merge --out MODEL" in the_error(capsys.readouterr().err)
    assert main(["export", str(adapter), "--merge", "--out", str(folder / "merged")]) == 0
    assert main(["repair", str(folder / "merged"), *fields, "--name", "of-adapter", "--dry-run"]) == 0
