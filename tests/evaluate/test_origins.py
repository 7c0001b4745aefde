"""The prompts that a model was made from are found through baselines, adapters and runs."""

import json
from pathlib import Path

import pytest
from small_runs import ROWS, write_recipe, write_rows

from dcr_ds.data.kept import kept_rows
from dcr_ds.data.load import examine_data
from dcr_ds.data.records import Prompt
from dcr_ds.evaluate.origins import made_from
from dcr_ds.files import write_json, write_jsonl
from dcr_ds.recipe import load_recipe
from dcr_ds.recipe.layout import RunFolder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run with an adapter and a model of an earlier baseline; weights are not read."""
    run = RunFolder(tmp_path / "runs" / "run")
    recipe = write_recipe(tmp_path, baseline(tmp_path / "first", "hub/id", ["a first prompt"]))
    run.stage("align").model.mkdir(parents=True)
    run.recipe.write_text(recipe.read_text())
    return run


def baseline(folder: Path, source: object, prompts: list[str]) -> Path:
    folder.mkdir()
    write_json(folder / "baseline.json", {"source": str(source)})
    rows = [Prompt(str(number), text, pair=f"p{number}") for number, text in enumerate(prompts)]
    write_jsonl(folder / "prompts.jsonl", kept_rows({"harmful": rows}))
    return folder


def adapter_on(base: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (folder / "adapter_model.safetensors").touch()
    return folder


def test_a_baseline_of_an_adapter_on_a_model_of_a_run_of_a_baseline(run, tmp_path):
    adapter = adapter_on(run.stage("align").model, tmp_path / "adapter")
    found = made_from(str(baseline(tmp_path / "last", adapter, ["a last prompt"])))
    assert not found.notes
    prompts = {name: [row.prompt for row in rows.rows] for name, rows in found.sets.items()}
    trained = {name: ROWS[name] for name in ("seemingly_toxic", "toxic", "general", "refusals")}
    assert prompts == {
        f"{tmp_path / 'last'} (harmful)": ["a last prompt"],
        **{f"{run.folder} (data.{name})": [row["prompt"] for row in rows] for name, rows in trained.items()},
        f"{tmp_path / 'first'} (harmful)": ["a first prompt"],
    }
    assert found.sets[f"{tmp_path / 'last'} (harmful)"].rows[0].pair == "p0"


def test_folders_from_elsewhere_say_nothing(run, tmp_path):
    (tmp_path / "model").mkdir()
    (run.folder / "mine").mkdir()
    for source in (tmp_path / "model", run.folder / "mine", tmp_path / "none", "hub/id", "https://host/v1#m"):
        found = made_from(str(source))
        assert not found.sets and not found.notes
    loop = baseline(tmp_path / "loop", tmp_path / "loop", ["a prompt"])
    assert len(made_from(str(loop)).sets) == 1


def test_what_cannot_be_read_is_a_note_and_the_rest_is_found(run, tmp_path):
    data, _ = examine_data(load_recipe(str(run.recipe), []), ["toxic", "general"])
    write_json(run.environment, {"data": {name: {"sha256": sha} for name, sha in data.hashes().items()}})
    write_rows(tmp_path / "toxic.jsonl", ROWS["toxic"][:5])
    (tmp_path / "refusals.jsonl").unlink()
    (tmp_path / "first" / "prompts.jsonl").write_text('{"set": "harmful", "id": 1, "prompt": "a"}\n')
    found = made_from(str(run.stage("align").model))
    assert len(found.sets) == 3 and len(found.sets[f"{run.folder} (data.toxic)"].rows) == 5
    changed, damaged = sorted(note for note in found.notes if "refusals" not in note)[::-1]
    assert "data.toxic has changed since the run" in changed
    assert "prompts.jsonl, row 1" in damaged and "leakage from it is not checked" in damaged
    assert any("refusals.jsonl" in note for note in found.notes) and len(found.notes) == 3
    (tmp_path / "first" / "prompts.jsonl").unlink()
    assert any("prompts.jsonl: is missing" in note for note in made_from(str(tmp_path / "first")).notes)


@pytest.mark.parametrize("name", [".", "model-bf16.gguf"])
def test_an_export_leads_to_the_run_that_it_is_of(run, tmp_path, name):
    out = tmp_path / "export"
    write_json(out / "exported.json", {"source": str(run.stage("align").folder)})
    found = made_from(str(out / name))
    assert f"{run.folder} (data.toxic)" in found.sets and f"{tmp_path / 'first'} (harmful)" in found.sets
    run.folder.rename(tmp_path / "moved")
    found = made_from(str(out / name))
    assert not found.sets and "exported from" in found.notes[0] and "which is missing" in found.notes[0]


def test_a_damaged_adapter_does_not_hide_the_source_of_its_run(run, tmp_path):
    adapter = adapter_on(tmp_path / "none", run.stage("align").adapter)
    (adapter / "adapter_config.json").write_text("{")
    assert f"{tmp_path / 'first'} (harmful)" in made_from(str(adapter)).sets


@pytest.mark.parametrize("recorded", [["data.toxic"], {"data.toxic": "a hash"}, {"data.toxic": {"sha256": 7}}])
def test_a_damaged_record_of_the_data_ends_no_evaluation(run, recorded):
    write_json(run.environment, {"data": recorded})
    assert len(made_from(str(run.stage("align").model)).sets) == 5


def test_a_refined_model_is_made_from_the_data_of_refine_alone(run):
    run.stage("refine").model.mkdir(parents=True)
    found = made_from(str(run.stage("refine").model))
    assert not [name for name in found.sets if "refusals" in name] and f"{run.folder} (data.toxic)" in found.sets
