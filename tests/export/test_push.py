"""What is uploaded carries the card of its run. The upload itself needs the hub; how it fails is in test_export.py."""

from huggingface_hub import ModelCard
from run_folders import write_run

from dcr_ds.export.push import add_card


def test_a_stage_that_is_done_brings_its_card(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    add_card(run, "align", out)
    assert "Trained in two stages" in ModelCard.load(out / "README.md").text
    add_card(run, "refine", out)
    assert "Trained in two stages" in (out / "README.md").read_text()  # the one that is there stays


def test_a_stage_that_is_not_done_and_an_adapter_of_no_run_have_none(tmp_path):
    run, adapter = write_run(tmp_path / "run"), tmp_path / "adapter"
    (run / "align" / "checkpoints").mkdir()
    (run / "align" / "summary.json").unlink()
    for what in (run / "align", adapter):
        out = tmp_path / f"out of {what.name}"
        for folder in (out, adapter):
            folder.mkdir(exist_ok=True)
        add_card(what, None, out)
        assert not list(out.iterdir())
