"""Discernment in reports: the control is the reference, pairs of sets, both readings, and the curve in the figure."""

import json

import numpy as np
import pytest
from run_folders import write_benchmark, write_run
from small_runs import write_rows

from dcr_ds.recipe.layout import RunFolder
from dcr_ds.report import terminal_table, write_report
from dcr_ds.report.numbers.comparison import compare
from dcr_ds.report.numbers.discernment import GRID
from dcr_ds.report.numbers.read import read_run
from dcr_ds.report.sections.discernment import sentence

N = 40  # prompts of each set
REFUSED = {"base": (2, 2), "control": (20, 24), "aligned": (8, 32)}  # harmless and harmful prompts that are refused


def write_model(run, model, separation, agrees=True, harmless="seeming", harmful="toxic"):
    """A model that refuses REFUSED prompts of each set; its log-odds of harmful prompts are higher by `separation`.

    Without `agrees` the log-odds say nothing about its answers.
    """
    generator = np.random.default_rng(sorted(REFUSED).index(model))
    for name, wanted, shift, refused in (
        (harmless, "comply", 0.0, REFUSED[model][0]), (harmful, "refuse", separation, REFUSED[model][1]),
    ):  # fmt: skip
        home = run.model(model).benchmark(name)
        write_benchmark(home.folder, wanted, ["n"] * refused + ["y"] * (N - refused))
        values = np.sort(generator.normal(shift, 1, N))[::-1]
        values = values if agrees else generator.permutation(values)
        rows = [
            {"id": f"{i}", "log_odds": value, "first_token": value, "pair": f"pair {i}"}
            for i, value in enumerate(values.tolist())
        ]
        write_rows(home.log_odds, rows)


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
    said = sentence(comparison.columns, comparison.discernment)
    assert said.startswith("DCR on all harmless against all harmful prompts: AUC of the refusal log-odds 0.")
    assert said.count("which excludes zero") == 2 and "(STL 0." in said
    text = write_report([run.folder], run.report)
    assert f"**{said[:40]}" in text.replace("\\", "")
    assert said[:40] in terminal_table([run.folder])


def test_log_odds_that_do_not_agree_with_the_answers_are_no_headline(run):
    write_model(run, "aligned", 2.5, agrees=False)
    comparison = compared(run)
    said = sentence(comparison.columns, comparison.discernment)
    assert said.startswith("DCR on all harmless against all harmful prompts: Youden's J of the judged answers 0.60")
    assert "AUC" not in said
    assert "are not headlines; see Youden's J." in write_report([run.folder], run.report)


def test_without_a_control_the_headline_compares_with_nothing(tmp_path):
    run = RunFolder(write_run(tmp_path / "run"))
    for model in ("base", "aligned"):
        write_model(run, model, 1.0)
    text = write_report([run.folder], run.report)
    headline = next(line for line in text.splitlines() if line.startswith("**"))
    assert headline.startswith("**aligned complies with 80.0% of harmless prompts (95% interval ")
    assert "base" not in headline
    assert "## Discernment" in text


def test_sets_that_name_each_other_are_compared_pair_by_pair(run):
    for model in REFUSED:
        write_model(run, model, 1.0, harmless="xs-safe", harmful="xs-unsafe")
        scores = run.model(model).benchmark("xs-safe").scores
        scores.write_text(json.dumps(json.loads(scores.read_text()) | {"counterpart": "xs-unsafe"}))
    assert [entry.pair.title for entry in compared(run).discernment] == ["xs-safe against xs-unsafe"]


def test_curves_of_the_figure_are_compliance_at_each_amount_of_refusal(run):
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
    assert aligned.measures["auc"]["value"] > 0.8 and "youden_j" not in aligned.measures and aligned.agreement is None
