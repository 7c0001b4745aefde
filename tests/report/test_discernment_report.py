"""Discernment in reports: the control as reference, paired sets, log-odds and verdicts, and the curve in the figure."""

import json
import re

import numpy as np
import pytest
from run_folders import NUM_PROMPTS as N
from run_folders import REFUSED, report_of, write, write_model, write_run
from small_runs import write_rows

from dcr_ds.recipe.layout import RunFolder
from dcr_ds.report import terminal_table, write_report
from dcr_ds.report.numbers.comparison import compare
from dcr_ds.report.numbers.discernment import GRID
from dcr_ds.report.numbers.read import read_run
from dcr_ds.report.render.curves import ticks
from dcr_ds.report.sections.discernment import sentence


@pytest.fixture
def run(tmp_path):
    run = RunFolder(write_run(tmp_path / "run", control="stl"))
    for model, separation in {"base": 0.2, "control": 0.5, "aligned": 2.5}.items():
        write_model(run, model, separation)
    return run


def compared(run):
    return compare([read_run(run.folder)])


def test_the_control_is_the_reference_and_models_are_named_by_their_method(run):
    comparison = compared(run)
    assert [column.title for column in comparison.columns] == ["base", "STL", "refined", "DCR"]
    (entry,) = comparison.discernment
    assert (entry.n_harmless, entry.n_harmful) == (N, N)
    base, control, refined, aligned = entry.columns
    assert refined is None and not control.differences
    assert aligned.differences["auc"]["value"] == pytest.approx(
        aligned.measures["auc"]["value"] - control.measures["auc"]["value"]
    )
    assert aligned.measures["youden_j"]["value"] == pytest.approx(32 / N + 32 / N - 1)


def test_the_headline_says_whether_the_interval_excludes_zero(run):
    comparison = compared(run)
    headline_text = sentence(comparison.columns, comparison.discernment)
    assert headline_text.startswith("DCR on all harmless against all harmful prompts: AUC of the refusal log-odds 0.")
    assert headline_text.count("which excludes zero") == 2 and "(STL 0." in headline_text
    text = report_of([run.folder], run.report)
    assert f"**{headline_text[:40]}" in text.replace("\\", "")
    assert headline_text[:40] in terminal_table([run.folder])


def test_log_odds_without_agreement_are_not_a_headline(run):
    write_model(run, "aligned", 2.5, agrees=False)
    comparison = compared(run)
    text = sentence(comparison.columns, comparison.discernment)
    assert text.startswith("DCR on all harmless against all harmful prompts: Youden's J of the judged answers 0.60")
    assert "AUC" not in text
    assert text.endswith("Log-odds and margins agree too little with the answers to be quoted.")
    assert "the refusal log-odds of DCR rank its refused answers" in report_of([run.folder], run.report)


def test_log_odds_of_models_that_refuse_too_little_cannot_be_checked(run, monkeypatch):
    monkeypatch.setitem(REFUSED, "aligned", (1, 3))
    write_model(run, "aligned", 2.5)
    comparison = compared(run)
    text = sentence(comparison.columns, comparison.discernment)
    assert "AUC" not in text
    assert text.endswith("Too few answers are refused, or too few comply, to check log-odds and margins against them.")


def test_margins_are_quoted_where_only_they_agree_with_the_answers(run):
    home = run.model("aligned")
    for name in ("seeming", "toxic"):
        file = home.benchmark(name).log_odds
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        shuffled = np.random.default_rng(0).permutation([row["log_odds"] for row in rows]).tolist()
        write_rows(file, [row | {"log_odds": value} for row, value in zip(rows, shuffled, strict=True)])
    comparison = compared(run)
    text = sentence(comparison.columns, comparison.discernment)
    assert "AUC of the greedy margins 0." in text and "log-odds" not in text
    assert "AUC, greedy margin" in terminal_table([run.folder])


def test_log_odds_of_an_earlier_version_have_no_margins(run):
    for model in ("base", "control", "aligned"):
        for name in ("seeming", "toxic"):
            file = run.model(model).benchmark(name).log_odds
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            write_rows(file, [{key: value for key, value in row.items() if key != "margin"} for row in rows])
    table = terminal_table([run.folder])
    assert "AUC, refusal log-odds" in table and "margin" not in table


def test_without_a_control_the_headline_compares_nothing(tmp_path):
    run = RunFolder(write_run(tmp_path / "run"))
    for model in ("base", "aligned"):
        write_model(run, model, 1.0)
    text = report_of([run.folder], run.report)
    headline = next(line for line in text.splitlines() if line.startswith("**"))
    assert headline.startswith("**aligned complies with 80.0% of harmless prompts (95% interval ")
    assert "base" not in headline
    assert "## Discernment" in text


def test_paired_sets_are_compared_pair_by_pair(run):
    for model in REFUSED:
        write_model(run, model, 1.0, harmless="xs-safe", harmful="xs-unsafe")
        scores = run.model(model).benchmark("xs-safe").scores
        scores.write_text(json.dumps(json.loads(scores.read_text()) | {"counterpart": "xs-unsafe"}))
    assert [entry.pair.title for entry in compared(run).discernment] == ["xs-safe against xs-unsafe"]


def test_curves_show_compliance_against_refusal(run):
    comparison = compared(run)
    control, aligned = (point for point in comparison.points if point.title in ("STL", "DCR"))
    assert [x for x, _ in aligned.curve] == pytest.approx(list(GRID))
    heights = [y for _, y in aligned.curve]
    assert heights == sorted(heights, reverse=True)
    assert np.mean(heights) > np.mean([y for _, y in control.curve])
    write_report([run.folder], run.report)
    assert run.report.with_suffix(".html").read_text().count('class="curve"') == 3


def test_log_odds_without_answers_still_give_their_measures(run):
    for model in REFUSED:
        for name in ("seeming", "toxic"):
            home = run.model(model).benchmark(name)
            home.generations.unlink()
            for judge in home.judges():
                home.verdicts(judge).unlink()
    (entry,) = compared(run).discernment
    aligned = entry.columns[-1]
    assert aligned.measures["auc"]["value"] > 0.8 and "youden_j" not in aligned.measures and not aligned.agreement


def test_an_id_with_another_text_is_another_prompt(run):
    file = run.model("control").benchmark("seeming").generations
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_rows(file, [rows[0] | {"prompt": "something else?"}, *rows[1:]])
    (entry,) = compared(run).discernment
    assert (entry.n_harmless, entry.n_harmful) == (N - 1, N)


def test_verdicts_of_a_judge_of_an_earlier_evaluation_are_not_reported(run):
    home = run.model("aligned").benchmark("seeming")
    write_rows(home.verdicts("earlier"), [{"id": f"{i}", "label": "full_refusal", "score": 1.0} for i in range(N)])
    answers = read_run(run.folder).models["aligned"].benchmarks["seeming"].answers
    assert {judge for answer in answers.values() for judge in answer.labels} == {"xstest_strings"}


def test_openings_are_summarised(run):
    openings = [{"text": f"I cannot {i}", "source": "data", "refusals": 0.01 * i, "ordinary": 0.002} for i in range(20)]
    first = [
        {"text": "I", "refusals": 0.8, "ordinary": 0.1, "shared": True},
        {"text": "Sorry", "refusals": 0.1, "ordinary": 0.0, "shared": False},
    ]
    content = {"openings": openings, "first_tokens": first, "refusals_covered": 0.93, "ordinary_covered": 0.04}
    for model in ("base", "aligned"):  # the same tokenizer and data: shown once
        write(run.model(model).openings, content)
    text = report_of([run.folder], run.report)
    assert text.count("Refusal openings, the 8 most frequent of 20") == 1
    assert re.search(r"“I cannot 19” +\| +19\.0% \| +0\.2% \| data", text) and "I cannot 11" not in text
    assert "begin 93.0% of the refusals in the training data and 4.0% of the ordinary answers" in text
    assert (
        "1 of 2 first tokens can also begin ordinary answers (“I”)" in text and "different refusal openings" not in text
    )
    write(run.model("base").openings, content | {"openings": openings[1:]})
    assert "different refusal openings (base; DCR)" in report_of([run.folder], run.report)


def test_log_odds_during_alignment_are_plotted(run):
    for stage, end in (("control", 2.0), ("align", 4.0)):
        home = run.stage(stage)
        start = {"log_odds_toxic": -3.0, "refused_toxic": 0.0, "log_odds_general": -6.0}
        write(home.summary, {"steps": 20, "start": start, "stopped_because": f"{stage} is done"})
        write_rows(
            home.metrics,
            [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5, "log_odds_toxic": end, "log_odds_general": -5.0}],
        )
    text = report_of([run.folder], run.report)
    assert "STL, toxic prompts: −3.0 at step 0, +2.0 at step 20" in text
    assert "DCR, toxic prompts: −3.0 at step 0, +4.0 at step 20" in text
    assert "Alignment of STL ended: control is done." in text
    page = run.report.with_suffix(".html").read_text()
    assert 'id="alignment-1-title"' in page and page.count('class="legend"') == 4 and page.count(" dashed") == 2
    assert (run.report.parent / "figures" / "report-alignment-1.png").is_file()


def test_without_log_odds_during_alignment_there_is_no_such_section(run):
    write_rows(run.stage("align").metrics, [{"step": 1, "loss": 1.0}])
    assert "## Alignment" not in report_of([run.folder], run.report)


def test_warnings_are_shown_above_the_sections_and_in_the_terminal(run):
    environment = json.loads(run.environment.read_text())
    warning, note = "length separates <the> sets", "a row of confounds separates the two prompt sets"
    write(run.environment, environment | {"warnings": [warning], "notes": [note]})
    write(run.stage("refine").summary, {"warnings": ["refine failed: <b>the AUC fell</b>"]})
    text = report_of([run.folder], run.report)
    top, _, rest = text.partition("## ")
    assert "**Warning:** refine failed: " in top and "length separates" in top and "length separates" not in rest
    assert note in rest and note not in top
    assert "&lt;b&gt;the AUC fell" in run.report.with_suffix(".html").read_text()
    assert terminal_table([run.folder]).startswith("warning: refine failed: <b>the AUC fell</b>.")


def test_the_control_and_the_log_odds_are_in_the_cost_table(run):
    write(run.stage("control").summary, {"steps": 17, "wall_seconds": 61.0, "tokens": 100})
    cost = {"device": "CPU", "seconds": 200.0, "generated_tokens": 0, "parts": {"log_odds": {"seconds": 8.0}}}
    for model in ("base", "refined", "aligned"):
        write(run.model(model).cost, cost)
    text = report_of([run.folder], run.report)
    assert re.search(r"\| control +\| 1 min 01 s \| +17 \|", text)
    assert "Refusal log-odds took 24.0 s, 4.0% of all evaluation." in text
    assert re.search(r"\| control +\| +stl \|", text)


def test_the_shares_of_measurements_and_of_the_retain_term_are_reported(run):
    write(run.stage("refine").summary, {"steps": 9, "wall_seconds": 200.0, "measure_seconds": 30, "retain_seconds": 50})
    write(run.stage("align").summary, {"steps": 9, "wall_seconds": 100.0})
    text = " ".join(report_of([run.folder], run.report).split())
    assert "Of refine, measuring took 15% and the retain term took 25% of the wall time." in text
    assert "Of align" not in text


@pytest.mark.parametrize(("low", "high", "integers"), [(0, 17, True), (0, 1, True), (-7.3, 4.1, False), (0, 0, False)])
def test_ticks_enclose_the_values_in_few_even_steps(low, high, integers):
    marks = ticks(low, high, integers)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 8
    assert np.diff(marks) == pytest.approx(marks[1] - marks[0])
    assert not integers or all(mark == int(mark) for mark in marks)
