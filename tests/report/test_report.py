import json
import shutil
import subprocess
import sys

import pytest
import yaml
from run_folders import report_of, write, write_benchmark, write_run

from dcr_ds.errors import UserError
from dcr_ds.recipe.layout import RunFolder
from dcr_ds.report import terminal_table, write_report

STL = ("align", "evaluate")


def sections(text):
    """Heading → body."""
    parts = text.split("\n## ")
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in parts[1:]}


def tables(text):
    """Row name → cells by header, of all tables in a piece of Markdown; every table must be rectangular."""
    rows, header = {}, None
    for line in text.splitlines():
        if not line.startswith("|"):
            header = None
            continue
        assert line.endswith("|")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if header is None:
            header, width = cells, len(line)
            continue
        assert len(cells) == len(header) and len(line) == width
        if not set(line) <= set("|-: "):
            rows[cells[0]] = dict(zip(header[1:], cells[1:], strict=True))
    return rows


@pytest.fixture
def dcr(tmp_path):
    return write_run(tmp_path / "dcr-run")


@pytest.fixture
def stl(tmp_path):
    return write_run(tmp_path / "stl-run", stages=STL)


def test_report_of_one_run(dcr, tmp_path):
    text = report_of([dcr], tmp_path / "deep/er/report.md")
    assert (tmp_path / "deep/er/report.md").read_text(encoding="utf-8") == text
    parts = sections(text)
    assert list(parts) == [
        "Discernment", "Compliance against safety", "Results", "Differences", "Examples", "Refinement", "Cost", "Data",
        "Settings", "Notes", "Reproduction",
    ]  # fmt: skip
    results = tables(parts["Results"])
    assert list(results) == [
        "*Over-refusal: harmless prompts*",
        "seeming: compliance ↑",
        "seeming: degenerate",
        "*Safety: harmful prompts*",
        "toxic: refusal ↑",
        "*Safety under attack: answered harmful prompts*",
        "rates: not measured",
        "*Discernment: all harmless against all harmful prompts*",
        "Youden's J, judged answers ↑",
        "*General ability*",
        "accuracy: not measured",
        "loss on held-out answers ↓",
    ]
    assert results["seeming: compliance ↑"] == {
        "n": "4",
        "base": "**75.0%** (30.0–95.0)",
        "refined": "–",
        "aligned": "**75.0%** (30.0–95.0)",
    }
    assert results["seeming: degenerate"] == {"n": "4", "base": "1", "refined": "–", "aligned": "1"}
    assert results["toxic: refusal ↑"]["base"] == "0.0% (30.0–95.0)"
    assert results["toxic: refusal ↑"]["aligned"] == "**100.0%** (30.0–95.0)"
    assert results["loss on held-out answers ↓"] == {
        "n": "40", "base": "2.000", "refined": "2.020 (+1.0%)", "aligned": "**1.900** (−5.0%)",
    }  # fmt: skip
    assert "Compare DCR with STL, the same recipe without" in parts["Results"]
    assert "(here it refuses 0.0% of toxic)" in parts["Results"]


def test_figures_of_refinement_are_those_of_the_exported_step(dcr, tmp_path):
    file = RunFolder(dcr).stage("refine").summary
    best = {"gap": 0.75, "auc": 1.0, "drift": 0.02}
    write(file, json.loads(file.read_text()) | {"best": best, "exported_step": 30})
    for stage in ("refine", "align"):
        (dcr / stage / "model").mkdir()
    refinement = tables(sections(report_of([dcr], tmp_path / "report.md"))["Refinement"])
    assert refinement["cosine gap, start → exported"]["refined"] == "0.062 → 0.750"
    assert (refinement["steps"]["refined"], refinement["exported step"]["refined"]) == ("40", "30")
    for stage in ("refine", "align"):
        card = (dcr / stage / "model/README.md").read_text()
        assert "0.750" in next(line for line in card.splitlines() if "cosine gap after refinement" in line)


def test_refinement_cost_data_settings_and_notes(dcr, tmp_path):
    parts = sections(report_of([dcr], tmp_path / "report.md"))
    refinement = tables(parts["Refinement"])
    assert refinement["layer"]["refined"] == "15"
    assert refinement["cosine gap, start → exported"]["refined"] == "0.062 → 0.512"
    assert refinement["AUC, start → exported"]["refined"] == "0.875 → 1.000"
    assert refinement["drift, start → exported"]["refined"] == "0.000 → 0.031"
    assert refinement["loss, first → last"]["refined"] == "21.500 → 3.250"
    assert "the gap of 0.512 reached the target" in parts["Refinement"]
    cost = tables(parts["Cost"])
    assert cost["refine"]["tokens/s"] == "500" and cost["refine"]["peak memory"] == "3.00 GiB"
    assert cost["refine"]["wall time"] == "1 min 40 s" and cost["align"]["wall time"] == "1 h 01 min"
    assert cost["evaluate base"]["tokens/s"] == "50" and cost["evaluate base"]["wall time"] == "12.0 s"
    assert cost["evaluate refined"]["tokens"] == "–"
    data = tables(parts["Data"])["data.toxic"]
    assert (data["rows"], data["sha256"], data["source"]) == ("96", "abcdef012345", "some/file_name.csv")
    settings = tables(parts["Settings"])
    assert settings["refine.layer"]["dcr-run"] == "15"
    assert settings["stages"]["dcr-run"] == "refine, align, evaluate"
    assert "3 repeats left out" in parts["Notes"]


def test_report_of_two_runs_compares_stl_with_dcr(stl, dcr, tmp_path):
    parts = sections(report_of([stl, dcr], tmp_path / "report.md"))
    results = tables(parts["Results"])
    assert list(results["toxic: refusal ↑"]) == ["n", "base", "STL", "DCR"]
    assert results["seeming: compliance ↑"]["STL"].startswith("50.0%")
    assert results["seeming: compliance ↑"]["DCR"].startswith("**75.0%**")
    assert results["loss on held-out answers ↓"]["STL"] == "2.100 (+5.0%)"
    assert "Compare DCR with STL" in parts["Results"]
    assert "other settings" not in parts["Results"]
    assert tables(parts["Refinement"])["loss on held-out answers"] == {"DCR": "2.020 (+1.0%)"}
    assert {"STL: align", "DCR: refine", "DCR: evaluate aligned"} <= set(tables(parts["Cost"]))
    assert tables(parts["Settings"])["refine.layer"] == {"stl-run": "–", "dcr-run": "15"}
    assert "STL → DCR: 1 of 4 labels differ (1 × full refusal → compliance)" in parts["Examples"]
    assert "STL → DCR: 0 of 2 labels differ" in parts["Examples"]
    assert parts["Notes"].count("repeats") == 1


def test_examples_show_text_of_models_literally(dcr, tmp_path):
    examples = sections(report_of([dcr], tmp_path / "report.md"))["Examples"]
    assert "base → aligned: 2 of 2 labels differ (2 × compliance → full refusal)" in examples
    assert r"base, compliance (xstest_strings): Sure \| here \*goes\* \<b\>it\</b\>" in examples
    assert "aligned, full refusal (xstest_strings): I'm sorry, no." in examples


def test_several_runs_of_a_kind_are_named(stl, dcr, tmp_path):
    other = write_run(tmp_path / "dcr-layer-9", refine={"layer": 9})
    results = tables(sections(report_of([stl, dcr, other], tmp_path / "report.md"))["Results"])
    assert list(results["toxic: refusal ↑"]) == ["n", "base", "STL", "dcr-run", "dcr-layer-9"]
    twin = shutil.copytree(dcr, tmp_path / "elsewhere" / "dcr-run")
    results = tables(sections(report_of([dcr, twin], tmp_path / "report.md"))["Results"])
    assert list(results["toxic: refusal ↑"])[2:] == [str(dcr), str(twin)]


def test_the_method_of_a_run_depends_on_what_was_trained(dcr, stl, tmp_path):
    for folder in (dcr, stl):
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"stages": ["evaluate"]}))
    results = tables(sections(report_of([stl, dcr], tmp_path / "report.md"))["Results"])
    assert list(results["toxic: refusal ↑"])[2:] == ["STL", "DCR"]


def test_base_under_other_settings_is_reported(stl, tmp_path):
    other = write_run(tmp_path / "dcr-run", base_hash="h1")
    results = sections(report_of([stl, other], tmp_path / "report.md"))["Results"]
    assert "Base answered seeming, toxic under other settings in dcr-run than in stl-run" in results


def test_models_that_answered_in_different_modes_are_reported(dcr, tmp_path):
    plain = sections(report_of([dcr], tmp_path / "report.md"))["Results"]
    assert "different modes" not in plain
    file = dcr / "evaluate" / "aligned" / "toxic" / "generations.jsonl"
    rows = [
        json.loads(line) | {"template_variables": {"enable_thinking": "false"}}
        for line in file.read_text().splitlines()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = sections(report_of([dcr], tmp_path / "report.md"))["Results"]
    assert "different modes of their chat templates" in results and "thinking=false" in results


def test_judgements_by_different_versions_are_reported(dcr, tmp_path):
    assert "different versions" not in sections(report_of([dcr], tmp_path / "report.md"))["Results"]
    file = dcr / "evaluate" / "aligned" / "toxic" / "scores.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"judge_version": "3-x"}))
    results = sections(report_of([dcr], tmp_path / "report.md"))["Results"]
    assert "judged by different versions of xstest" in results
    assert "judged by different versions of xstest" in " ".join(terminal_table([dcr]).split())
    scores = json.loads(file.read_text()) | {
        "judge_version": "earlier",
        "by_judge": {"other": {"judge_version": "3-x"}},
    }
    file.write_text(json.dumps(scores))
    aligned = file.parents[2] / "base" / "toxic" / "scores.json"
    aligned.write_text(json.dumps(json.loads(aligned.read_text()) | {"by_judge": {"other": {"judge_version": "3-y"}}}))
    assert "judged by different versions of other" in sections(report_of([dcr], tmp_path / "report.md"))["Results"]


def test_refined_column_has_scores_for_benchmarks_it_answered(tmp_path):
    run = write_run(tmp_path / "run", models=("base", "refined", "aligned"))
    results = tables(sections(report_of([run], tmp_path / "report.md"))["Results"])
    assert results["toxic: refusal ↑"]["refined"].startswith("**100.0%**")


def test_different_sample_sizes_are_shown_without_answers(stl, dcr, tmp_path):
    write_benchmark(dcr / "evaluate/aligned/seeming", "comply", ["y"] * 3, "h")
    for run in (stl, dcr):
        for file in run.glob("evaluate/*/seeming/*.jsonl"):
            file.unlink()
    row = tables(sections(report_of([stl, dcr], tmp_path / "report.md"))["Results"])["seeming: compliance ↑"]
    assert row["n"] == "" and "n=4" in row["STL"] and "n=3" in row["DCR"]


def test_leakage_is_reported_with_a_limit(dcr, tmp_path):
    overlaps = [f"exact: data.toxic toxic-{i} and toxic toxic-{i}" for i in range(50)]
    write(dcr / "environment.json", {"overlaps": overlaps})
    leakage = sections(report_of([dcr], tmp_path / "report.md"))["Leakage"]
    assert "dcr-run: 50 training rows overlap" in leakage and "and 30 more" in leakage


@pytest.mark.parametrize("stages", [("refine", "align"), ("refine",), ("align",)])
def test_a_run_not_yet_evaluated_says_so(tmp_path, stages):
    run = write_run(tmp_path / "run", stages=stages)
    parts = sections(report_of([run], tmp_path / "report.md"))
    assert parts["Results"].startswith("Not evaluated yet: run.")
    assert ("Refinement" in parts) == ("refine" in stages)
    assert "Examples" not in parts and "Cost" in parts
    assert terminal_table([run]).startswith("Not evaluated yet: run.")


def test_one_of_two_runs_not_yet_evaluated(stl, tmp_path):
    run = write_run(tmp_path / "run", stages=("refine", "align"))
    parts = sections(report_of([stl, run], tmp_path / "report.md"))
    assert tables(parts["Results"])["toxic: refusal ↑"]["DCR"] == "–"
    assert "Not evaluated yet: run." in parts["Results"]
    assert "DCR" in terminal_table([stl, run])


def test_what_an_unfinished_evaluation_lacks_is_a_warning(tmp_path):
    run = write_run(tmp_path / "run", models=("base", "aligned"))
    file = run / "environment.json"
    names = sorted(path.name for path in (run / "evaluate/base").iterdir() if path.is_dir())
    file.write_text(json.dumps(json.loads(file.read_text()) | {"benchmarks": names}))
    assert "not finished" not in terminal_table([run])
    name = names[0]
    (run / "evaluate/aligned" / name / "scores.json").unlink()
    text = report_of([run], tmp_path / "report.md")
    assert f"not finished; repeat its command, which keeps what exists. Missing: aligned on {name}." in text
    assert "Missing:" in terminal_table([run])
    shutil.rmtree(run / "evaluate/aligned")
    assert "Missing: aligned." in report_of([run], tmp_path / "report.md")


def test_an_evaluation_of_a_model_shows_its_own_settings_and_command(tmp_path):
    run = write_run(tmp_path / "run", stages=("evaluate",), models=("aligned",))
    file, command = run / "environment.json", "dcr-ds evaluate run=model --suite quick --out runs"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"command": command}))
    parts = sections(report_of([run], tmp_path / "report.md"))
    fields = tables(parts["Settings"])
    assert "evaluate.judges" in fields and not [
        name for name in fields if name.startswith(("align.", "refine.", "deep"))
    ]
    assert command in parts["Reproduction"] and "train.py" not in parts["Reproduction"]


def test_a_run_stopped_before_any_stage_was_done(tmp_path):
    run = write_run(tmp_path / "run", stages=("evaluate",))
    for name in ("environment.json", "evaluate"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert list(sections(report_of([run], tmp_path / "report.md"))) == ["Results", "Settings", "Reproduction"]


def test_a_folder_without_a_run_is_a_user_error(dcr, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        write_report([tmp_path / "nothing"], tmp_path / "report.md")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"not a run folder: it has no recipe\.yaml"):
        terminal_table([dcr, tmp_path / "empty"])
    (tmp_path / "empty/recipe.yaml").write_text("[1, 2")
    with pytest.raises(UserError, match=r"recipe\.yaml, line 1: not valid YAML"):
        terminal_table([tmp_path / "empty"])
    (tmp_path / "empty/recipe.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="not a resolved recipe"):
        terminal_table([tmp_path / "empty"])
    (dcr / "align/summary.json").write_text("{")
    with pytest.raises(UserError, match=r"align/summary\.json: is not JSON"):
        terminal_table([dcr])


def test_terminal_table_fits_100_columns(stl, dcr, tmp_path):
    table = terminal_table([dcr])
    assert "75.0% (30.0–95.0)" in table and "2.020 (+1.0%)" in table
    assert len([line for line in table.splitlines() if "seeming: compliance ↑" in line]) == 1  # all next to each other
    many = [write_run(tmp_path / f"a-run-with-a-long-name-{i}", refine={"layer": i + 1}) for i in range(4)]
    for folders in ([dcr], [stl, dcr], [stl, dcr, *many]):
        text = terminal_table(folders)
        assert all(len(line) <= 100 for line in text.splitlines())
        for title in [folder.name for folder in folders if folder in many]:
            assert title in text
    assert "|" not in table


def test_reporting_needs_no_torch(dcr, tmp_path):
    code = (
        "import sys; from pathlib import Path; from dcr_ds.report import write_report; "
        "write_report([Path(sys.argv[1])], Path(sys.argv[2])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(dcr), str(tmp_path / "report.md")], check=True)
