"""An uploaded folder has the model card of its run. The upload needs the hub; test_export.py tests its errors."""

from huggingface_hub import ModelCard
from run_folders import write_run

from dcr_ds.export.push import add_card


def test_a_finished_stage_has_its_card(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    add_card(run, "align", out)
    assert "Trained in two stages" in ModelCard.load(out / "README.md").text
    add_card(run, "refine", out)
    assert "Trained in two stages" in (out / "README.md").read_text()  # an existing one is kept


def test_an_unfinished_stage_and_an_adapter_outside_of_runs_have_no_card(tmp_path):
    run, adapter = write_run(tmp_path / "run"), tmp_path / "adapter"
    (run / "align" / "checkpoints").mkdir()
    (run / "align" / "summary.json").unlink()
    for trained in (run / "align", adapter):
        out = tmp_path / f"out of {trained.name}"
        for folder in (out, adapter):
            folder.mkdir(exist_ok=True)
        add_card(trained, None, out)
        assert not list(out.iterdir())
