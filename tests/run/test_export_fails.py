"""An export that fails loses no training: the last step is saved before it."""

import stat

import pytest

import dcr_ds
from dcr_ds.errors import UserError
from tests.small_runs import write_recipe
from tests.tiny import make_model


@pytest.mark.parametrize("stage", ["refine", "align"])
def test_a_stage_is_exported_again_without_training(tmp_path, monkeypatch, stage):
    recipe = dcr_ds.load_recipe(str(write_recipe(tmp_path, make_model(tmp_path / "model"))))
    folder = tmp_path / "runs" / "run" / stage

    def fail(*arguments, **options):
        raise UserError("no space for the model")

    with monkeypatch.context() as disturbed, pytest.raises(UserError, match="no space for the model"):
        disturbed.setattr(f"dcr_ds.{stage}.loop.write_trained", fail)
        dcr_ds.train(recipe)
    assert not (folder / "summary.json").exists()
    trained = (folder / "metrics.jsonl").read_text()
    monkeypatch.setattr(f"dcr_ds.{stage}.loop.train_step", None)
    monkeypatch.setattr("dcr_ds.align.loop.align" if stage == "refine" else "dcr_ds.refine.loop.refine", fail)
    if stage == "refine":
        recipe = recipe.model_copy(update={"stages": ["refine"]})
    dcr_ds.train(recipe)
    assert (folder / "summary.json").exists() and (folder / "model" / "config.json").exists()
    assert (folder / "metrics.jsonl").read_text() == trained


def test_a_model_behind_a_link_is_written_where_the_link_leads(train, run_folder, place):
    """As to a larger disk. What an interrupted export has left there is removed."""
    run_folder.stage("refine").folder.mkdir(parents=True)
    run_folder.stage("refine").model.symlink_to(place / "disk" / "model")
    (place / "disk" / "model").mkdir(parents=True)
    (place / "disk" / "model.partial").mkdir()
    train("--stages", "[refine]")
    assert run_folder.stage("refine").model.is_symlink()
    assert [path.name for path in (place / "disk").iterdir()] == ["model"]
    assert (place / "disk" / "model" / "model.safetensors").is_file()


def test_a_model_is_writable_where_the_files_of_its_source_are_not(train, run_folder, place):
    """As in a shared folder of models: its template is written a second time, which only root could do."""
    for file in (place / "model").iterdir():
        file.chmod(0o444)
    train("--stages", "[refine]")
    assert all(file.stat().st_mode & stat.S_IWUSR for file in run_folder.stage("refine").model.iterdir())
