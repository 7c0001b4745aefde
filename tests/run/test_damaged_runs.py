"""Runs in which something is missing or damaged: a message or a repair, never a stack trace or another result."""

import shutil

import pytest


def test_align_without_the_refined_model_or_its_tokenizer_is_an_error(train, refused, run_folder):
    """Only the evaluation noticed that the tokenizer was lost."""
    train("--stages", "[refine]")
    (run_folder.stage("refine").model / "tokenizer_config.json").unlink()
    assert "tokenizer_config.json of the tokenizer is missing" in refused("--stages", "[refine,align]")
    shutil.rmtree(run_folder.stage("refine").model)
    for stages in ("[refine,align]", "[align]"):
        message = refused("--stages", stages)
        assert message.startswith(f"{run_folder.stage('refine').model}: refine is done, and its model is missing")
        assert "--redo refine" in message
    assert not run_folder.stage("align").model.exists()


def test_align_before_refine_is_done_is_an_error(train, refused, run_folder):
    train("--stages", "[refine]", stop=True)
    message = refused("--stages", "[align]")
    assert message.startswith(f"{run_folder.stage('refine').folder}: refine has begun and is not done")


def test_checkpoints_of_a_finished_stage_are_removed_at_the_next_start(train, run_folder):
    """A run that was killed between writing summary.json and removing them."""
    train("--stages", "[refine]", stop=True)
    folder = run_folder.stage("refine")
    shutil.copytree(folder.checkpoints, run_folder.folder / "copy")
    train("--stages", "[refine]")
    shutil.move(run_folder.folder / "copy", folder.checkpoints)
    assert "already done" in train("--stages", "[refine]")
    assert not folder.checkpoints.exists() and folder.model.is_dir()


def test_truncated_summary_is_repaired_from_the_last_checkpoint(train, run_folder):
    train("--stages", "[refine]", stop=True)
    run_folder.stage("refine").summary.write_text('{"ste')
    train("--stages", "[refine]")
    assert '"steps": 3' in run_folder.stage("refine").summary.read_text()


@pytest.mark.parametrize("content", ["", "{}", '{"st'])
def test_truncated_summary_without_checkpoints_is_an_error(train, refused, run_folder, content):
    train("--stages", "[refine]")
    run_folder.stage("refine").summary.write_text(content)
    message = refused("--stages", "[refine]")
    assert message.startswith(f"{run_folder.stage('refine').summary}: damaged") and "--redo refine" in message


@pytest.mark.parametrize("content", ["", "[]", '{"data": [1], "attempts": 5, "notes": [{}], "warnings": "x"}'])
def test_damaged_environment_is_written_again(train, run_folder, content):
    train("--stages", "[refine]", stop=True)
    run_folder.environment.write_text(content)
    train("--stages", "[refine]")
    assert '"data.toxic"' in run_folder.environment.read_text()


@pytest.mark.parametrize("content", ["", "{}", "refine: ["])
def test_damaged_recipe_is_refused(train, refused, run_folder, content):
    train("--stages", "[refine]", stop=True)
    run_folder.recipe.write_text(content)
    message = refused("--stages", "[refine]")
    assert message.startswith(f"{run_folder.recipe}: not a recipe") and "--name" in message


def test_run_without_git_on_the_path(train, run_folder, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    train("--stages", "[refine]")
    assert '"commit": null' in run_folder.environment.read_text()
