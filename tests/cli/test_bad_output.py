"""An output folder that cannot be used: the message names it, and its contents do not change."""

import shutil
from pathlib import Path

import pytest
from small_runs import snapshot, the_error

from dcr_ds.cli import main
from dcr_ds.files import write_json
from dcr_ds.recipe import load_recipe


def test_output_under_a_file(failing, tmp_path):
    (tmp_path / "file").write_text("")
    message = failing("--output", tmp_path / "file")
    assert message.startswith(f"{tmp_path}/file/run: the run folder cannot be created") and "--output" in message
    assert (tmp_path / "file").read_text() == ""


def test_a_file_at_the_path_of_the_run_folder(failing, tmp_path):
    (tmp_path / "run").write_text("")
    message = failing("--output", tmp_path)
    assert message.startswith(f"{tmp_path}/run: the run folder cannot be created") and "--output" in message


@pytest.mark.parametrize("redo", [[], ["--redo", "align"]], ids=["", "redo align"])
def test_run_folder_of_another_recipe(refused, finished_run, redo):
    """An error before anything is removed: if only stage 2 were repeated, stage 1 would come from another recipe."""
    message = refused("--refine.margin", "0.4", *redo)
    assert message.startswith(f"{finished_run}: holds another recipe's run:\n  refine.margin: 0.25 there, 0.4 now")
    assert "--name" in message and "--redo refine" in message


def test_a_dry_run_fails_where_the_run_would(refused, recipe, finished_run, tmp_path):
    assert "refine.margin: 0.25 there" in refused("--dry-run", "--refine.margin", "0.4")
    file, general = finished_run / "refine/model/model.safetensors", Path(recipe).parent / "general.jsonl"
    for path, change, expected in (
        (general, lambda text: text.replace(b"Here", b"There"), "rows of data.general"),
        (file, lambda content: content[:-8], "refine is done, and its model is missing or incomplete"),
    ):
        before = path.read_bytes()
        path.write_bytes(change(before))
        assert expected in refused("--dry-run")
        path.write_bytes(before)
    (tmp_path / "file").write_text("")
    assert "cannot be created" in refused("--dry-run", "--output", tmp_path / "file")


@pytest.mark.parametrize("stages", ["", '"stages": 3', '"stages": ["../kept"]'])
def test_a_damaged_record_of_a_redo_removes_nothing(failing, tmp_path, stages):
    write_json(tmp_path / "kept/a.json", {})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/redo.json").write_text(f'{{"cleared": false, {stages}}}')
    before = snapshot(tmp_path)
    message = failing("--output", tmp_path)
    assert message.startswith(f"{tmp_path}/run/redo.json: damaged") and snapshot(tmp_path) == before


def test_a_dry_run_writes_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["train", recipe, "--dry-run", "--output", "~/runs"]) == 0
    assert not list(tmp_path.iterdir())
    assert load_recipe(recipe, [("output", "~/runs")]).folder == tmp_path / "runs/run"


def test_another_recipe_with_redo_of_the_stages_that_differ(recipe, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    command = ["train", recipe, "--output", str(tmp_path), "--align.weight_decay", "0.1", "--redo", "align"]
    assert main(command) == 0
    before, after = snapshot(finished_run / "refine"), snapshot(tmp_path / "run/refine")
    assert before == after
    assert "weight_decay: 0.1" in (tmp_path / "run/recipe.yaml").read_text()


def test_run_folder_with_an_unreadable_recipe(failing, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run/recipe.yaml").write_text("refine: [")
    before = snapshot(tmp_path)
    message = failing("--output", tmp_path)
    assert message.startswith(f"{tmp_path}/run/recipe.yaml: not a recipe") and "--name" in message
    assert snapshot(tmp_path) == before


def test_run_that_failed_before_its_first_checkpoint_accepts_another_recipe(failing, recipe, tmp_path):
    """Errors are often fixed by changing the recipe, so that the folder of the failed run must accept another one."""
    options = ["--output", str(tmp_path), "--stages", "[align]"]
    assert "align.max_length = 3 tokens" in failing(*options, "--align.max_length", "3")
    assert main(["train", recipe, *options, "--seed", "5"]) == 0
    assert "seed: 5" in (tmp_path / "run/recipe.yaml").read_text()


def test_refine_after_align_finished_without_it(failing, finished_run, tmp_path):
    """Otherwise the report would present a model that was aligned from the base as refined and aligned."""
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/refine")
    before = snapshot(tmp_path)
    message = failing("--output", tmp_path)
    assert message.startswith(f"{tmp_path}/run/align: was aligned without refine") and "--redo align" in message
    assert snapshot(tmp_path) == before


def test_disk_full_at_the_first_file(failing, finished_run, tmp_path, disk_full):
    """A run that is started again without free space keeps its recipe and its models."""
    shutil.copytree(finished_run, tmp_path / "run")
    before = snapshot(tmp_path)
    with disk_full(100):
        message = failing("--output", tmp_path)
    assert str(tmp_path) in message and "cannot be written" in message and "free some space" in message
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("stage", ["refine", "align"])
@pytest.mark.parametrize("what", ["checkpoint", "model"])
def test_disk_full(failing, recipe, tmp_path, disk_full, stage, what):
    """An error; no incomplete checkpoint or model is used, and the run continues once there is space."""
    options = ["--output", tmp_path, "--stages", f"[{stage}]"]
    options += ["--checkpoint.every_steps", 1 if what == "checkpoint" else 9]
    with disk_full(20_000):
        message = failing(*options)
    assert str(tmp_path) in message and "cannot be written" in message and "free some space" in message
    stage_folder = tmp_path / "run" / stage
    assert not (stage_folder / "model").exists() and not (stage_folder / "checkpoints/step-00000001").exists()
    assert main(["train", recipe, *map(str, options)]) == 0
    assert (tmp_path / f"run/{stage}/model/model.safetensors").is_file()


@pytest.mark.parametrize("largest", [100, 3000, 20_000])
def test_disk_full_in_an_export(finished_run, tmp_path, disk_full, capsys, largest):
    """The message names the new folder, not the model that is copied, and nothing is left."""
    capsys.readouterr()
    with disk_full(largest):
        assert main(["export", str(finished_run), "--out", str(tmp_path / "out")]) == 2
    message = the_error(capsys.readouterr().err)
    assert str(tmp_path / "out") in message and str(finished_run) not in message, message
    assert "cannot be written" in message and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["dcr-ds report: the following arguments are required: RUN"]),
        (["{run}", "--out"], ["--out: expected one argument"]),
        (["{here}/nowhere"], ["{here}/nowhere: no such folder", "<output>/<name>"]),
        (["{here}"], ["{here}", "not a run folder"]),
        (["{run}", "--out", "{here}/file/report.md"], ["{here}/file", "cannot be written"]),
        (["{run}", "--out", "{here}"], ["--out: {here} is a folder; name a file"]),
        (["{run}", "--out", "{run}/recipe.yaml"], ["{run}/recipe.yaml", "holds something else"]),
        (["{run}", "--out", "{here}/report.yaml"], ["{here}/report.yaml", "must name the Markdown file"]),
    ],
)
def test_report_that_cannot_be_written(finished_run, tmp_path, capsys, arguments, expected):
    (tmp_path / "file").write_text("")
    before = snapshot(finished_run)
    places = {"run": finished_run, "here": tmp_path}
    assert main(["report", *(argument.format(**places) for argument in arguments)]) == 2
    message = the_error(capsys.readouterr().err)
    assert all(words.format(**places) in message for words in expected), message
    assert snapshot(finished_run) == before
