import json

import pytest
from huggingface_hub import ModelCard
from run_folders import write, write_model, write_run

from dcr_ds.commands.report import run as report
from dcr_ds.recipe.layout import RunFolder
from dcr_ds.report import write_report


@pytest.fixture
def trained(tmp_path):
    run = write_run(tmp_path / "run")
    for stage in ("refine", "align"):
        (run / stage / "model").mkdir()
    return run


def test_the_card_has_valid_hub_metadata(trained, tmp_path):
    write_report([trained], tmp_path / "report.md")
    card = ModelCard.load(trained / "align/model/README.md")
    data = card.data.to_dict()
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data["license"] == "other" and data["pipeline_tag"] == "text-generation"
    results = {result.dataset_name: result for result in card.data.eval_results}
    assert results["toxic"].metric_type == "refusal_rate" and results["toxic"].metric_value == 100
    assert "n=2" in results["toxic"].metric_name
    for text in ("## Data", "abcdef012345", "Limits", "2603.03323", "40 steps", "**100.0%** (30.0–95.0)"):
        assert text in card.text


def test_the_card_of_a_model_that_was_not_evaluated(trained, tmp_path):
    write_report([trained], tmp_path / "report.md")
    card = ModelCard.load(trained / "refine/model/README.md")
    assert "was not evaluated" in card.text and "do not deploy" in card.text
    assert not card.data.eval_results


def test_the_control_has_its_own_card(tmp_path):
    run = write_run(tmp_path / "run", control="stl")
    write_model(RunFolder(run), "control", 0.5)
    write(run / "control/summary.json", {"steps": 17, "wall_seconds": 60.0, "warnings": []})
    (run / "control/model").mkdir()
    write_report([run], tmp_path / "report.md")
    card = ModelCard.load(run / "control/model/README.md")
    assert "the control of DCR" in card.text and "| control | 17 steps of 16" in card.text
    assert "| refine |" not in card.text and "cosine gap" not in card.text
    assert {result.dataset_name for result in card.data.eval_results} == {"seeming", "toxic"}


def test_a_card_has_the_discernment_and_warnings_of_its_run(tmp_path):
    run = RunFolder(write_run(tmp_path / "run", control="stl"))
    for model, separation in {"base": 0.2, "control": 0.5, "aligned": 2.5}.items():
        write_model(run, model, separation)
    summary = run.stage("refine").summary
    write(summary, json.loads(summary.read_text()) | {"warnings": ["refine failed: the gap fell"]})
    run.stage("align").model.mkdir()
    write_report([run.folder], run.report)
    card = ModelCard.load(run.stage("align").model / "README.md").text
    assert "**Warning:** refine failed: the gap fell." in card
    assert card.index("DCR on all harmless against all harmful prompts: AUC") < card.index("## Results")
    assert "AUC, refusal log-odds ↑" in card and "agreement of log-odds, AUC" in card


@pytest.mark.parametrize("stages", [("refine", "align", "evaluate"), ("align", "evaluate")])
@pytest.mark.parametrize("method", ["DPO", "KTO", "ORPO", "SimPO"])
def test_alignment_on_preferences_is_named_after_its_method(tmp_path, stages, method):
    runs = [write_run(tmp_path / name, stages, align={"method": name}) for name in ("sft", method.lower())]
    for run in runs:
        (run / "align/model").mkdir()
        write_report([run], tmp_path / f"{run.name}.md")
    sft, aligned = (ModelCard.load(run / "align/model/README.md").text for run in runs)
    assert f"optimisation ({method})" in aligned and "general conversations" not in aligned
    assert "optimisation" not in sft and "general conversations" in sft
    write_report(runs, tmp_path / "both.md")
    title = f"DCR + {method}" if "refine" in stages else f" {method} "
    assert title in (tmp_path / "both.md").read_text()


def test_a_card_mentions_4_bit_training(tmp_path):
    lora = {"adapter": "lora"}
    run = write_run(tmp_path / "run", model={"quantize": "nf4"}, refine={"layer": 15, **lora}, align=lora)
    (run / "align/model").mkdir()
    write_report([run], tmp_path / "report.md")
    assert "nf4; merged into" in ModelCard.load(run / "align/model/README.md").text


def test_a_local_source_is_not_a_hub_id(tmp_path):
    run = write_run(tmp_path / "run", model={"source": "/data/models/base"})
    (run / "align/model").mkdir()
    write_report([run], tmp_path / "report.md")
    assert ModelCard.load(run / "align/model/README.md").data.base_model is None


def test_only_cards_written_by_this_project_are_overwritten(trained, tmp_path):
    card, other = trained / "align/model/README.md", trained / "refine/model/README.md"
    other.write_text("# Mine")
    write_report([trained], tmp_path / "report.md")
    first = card.read_text()
    card.write_text(first + "an edit")
    write_report([trained], tmp_path / "report.md")
    assert card.read_text() == first and other.read_text() == "# Mine"
    card.write_text("\n".join(line for line in first.splitlines() if "Written by dcr-ds" not in line))
    kept = card.read_text()
    write_report([trained], tmp_path / "report.md")
    assert card.read_text() == kept


def test_a_comparison_writes_no_card(trained, tmp_path):
    other = write_run(tmp_path / "stl", stages=("align", "evaluate"))
    write_report([other, trained], tmp_path / "report.md")
    assert not (trained / "align/model/README.md").exists()


def test_the_command_writes_into_the_run_or_next_to_several(trained, tmp_path, capsys):
    assert report([str(trained)]) == 0
    assert {path.name for path in (trained / "report").iterdir()} == {"report.md", "report.html", "figures"}
    other = write_run(tmp_path / "stl", stages=("align", "evaluate"))
    assert report([str(other), str(trained)]) == 0
    assert (tmp_path / "report/report.html").is_file()
    assert report([str(trained), "--out", str(tmp_path / "here.md")]) == 0
    assert (tmp_path / "here.html").is_file() and (tmp_path / "figures/here-tradeoff.png").is_file()
    assert str(tmp_path / "here.html") in capsys.readouterr().out
