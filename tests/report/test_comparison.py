"""Comparisons: common prompts, several seeds, differences to the reference, several judges."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from run_folders import write, write_benchmark, write_run
from small_runs import write_rows

from dcr_ds.errors import UserError
from dcr_ds.report.numbers.comparison import compare
from dcr_ds.report.numbers.differences import difference, mean_difference, mean_rate, pareto_front
from dcr_ds.report.numbers.read import read_run
from dcr_ds.report.render.markdown import table_rows, written
from dcr_ds.report.sections.agreement import agreement
from dcr_ds.report.sections.categories import category_differences_table, category_tables
from dcr_ds.report.sections.comparability import comparability
from dcr_ds.report.sections.differences import differences_table
from dcr_ds.report.sections.headline import headline
from dcr_ds.report.sections.results import results_table

STL = ("align", "evaluate")


@pytest.fixture
def pair(tmp_path):
    """STL refuses half of 40 harmless and all of 20 toxic prompts; DCR a tenth, and all but one."""
    folders = [write_run(tmp_path / "stl", stages=STL), write_run(tmp_path / "dcr")]
    answers = {"stl": ("n" * 20 + "y" * 20, "n" * 20), "dcr": ("n" * 4 + "y" * 36, "n" * 19 + "y")}
    for folder in folders:
        harmless, harmful = answers[folder.name]
        write_benchmark(folder / "evaluate/aligned/seeming", "comply", list(harmless))
        write_benchmark(folder / "evaluate/aligned/toxic", "refuse", list(harmful))
        for benchmark in ("seeming", "toxic"):
            for file in (folder / "evaluate/base" / benchmark).iterdir():
                file.unlink()
    return folders


def compared(folders):
    return compare([read_run(folder) for folder in folders])


def leave_out(home, ids):
    """Remove answers from a benchmark, as if they had not been generated."""
    for file in home.glob("*.jsonl"):
        write_rows(file, [row for row in map(json.loads, file.read_text().splitlines()) if row["id"] not in ids])
    score = json.loads((home / "scores.json").read_text())
    write(home / "scores.json", score | {"n": score["n"] - len(ids)})


def test_differences_are_paired_and_against_the_first_run(pair):
    comparison = compared(pair)
    titles = [column.title for column in comparison.columns]
    seeming, toxic = comparison.benchmarks
    at = titles.index("STL")
    change = difference(seeming, titles.index("DCR"), at)
    assert change.value == pytest.approx(0.4) and 0.2 < change.low < 0.4 < change.high < 0.6
    assert change.p == pytest.approx(2 / 2**16)
    assert difference(toxic, titles.index("DCR"), at).p == 1
    assert difference(seeming, at, at) is None
    assert mean_difference([seeming], titles.index("DCR"), at).value == pytest.approx(0.4)
    rows = table_rows(differences_table(comparison))
    assert rows[0][-1] == "DCR"
    assert rows[1][0] == "seeming: compliance ↑" and rows[1][-1].startswith("+40.0 (+")
    assert rows[1][-1].endswith("; p<0.001)") and rows[2][-1].startswith("−5.0 (−")


def test_the_headline_states_gains_and_losses(pair):
    comparison = compared(pair)
    text = headline(replace(comparison, discernment=[]))
    assert text.startswith("DCR complies with 90.0% of harmless prompts, STL 50.0% (+40.0 points, 95% interval +")
    assert "and refuses 95.0% of harmful prompts, STL 100.0% (−5.0 points, 95% interval −" in text


def test_different_prompts_are_compared_on_their_intersection(pair):
    leave_out(pair[1] / "evaluate/aligned/seeming", {f"{i}" for i in range(4)})
    comparison = compared(pair)
    seeming = comparison.benchmarks[0]
    assert seeming.n == 36
    assert [round(36 * rate.value) for rate in seeming.rates if rate] == [20, 36]
    assert "different prompts (36, 40 of them); all columns show the 36 that they have in common" in seeming.note


def test_a_prompt_with_another_text_under_the_same_id_is_another_prompt(pair):
    file = pair[0] / "evaluate/aligned/seeming/generations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_rows(file, [rows[0] | {"prompt": "something else?"}, *rows[1:]])
    assert compared(pair).benchmarks[0].n == 39
    write_rows(file, [row | {"prompt": f"other {row['id']}"} for row in rows])
    with pytest.raises(UserError, match=r"seeming has no prompt that was asked in all of .*stl.*dcr.*report the runs"):
        compared(pair)


def test_seeds_of_a_recipe_are_one_column(pair, tmp_path):
    again = write_run(tmp_path / "dcr-1", seed=1)
    write_benchmark(again / "evaluate/aligned/seeming", "comply", list("n" * 8 + "y" * 32))
    write_benchmark(again / "evaluate/aligned/toxic", "refuse", list("n" * 20))
    comparison = compared([*pair, again])
    assert [column.title for column in comparison.columns][-1] == "DCR (2 seeds)"
    seeming = comparison.benchmarks[0]
    rate = seeming.rates[-1]
    assert (rate.value, rate.n, rate.seeds) == (pytest.approx(0.85), 40, 2)
    assert 0 <= rate.low < 0.85 < rate.high <= 1
    change = difference(seeming, len(comparison.columns) - 1, len(comparison.columns) - 2)
    assert change.value == pytest.approx(0.35) and change.p is None and change.low < 0.35 < change.high
    assert "DCR (2 seeds)" in written(results_table(comparison))
    environment = json.loads((again / "environment.json").read_text())
    environment["data"]["data.toxic"]["sha256"] = "of other rows"
    write(again / "environment.json", environment)  # the file of the same name has changed: not only another seed
    assert [column.title for column in compared([*pair, again]).columns][-2:] == ["dcr", "dcr-1"]


def test_a_mean_over_benchmarks_needs_all_seeds_on_each(pair):
    again = write_run(pair[0].parent / "dcr-1", seed=1)
    write_benchmark(again / "evaluate/aligned/seeming", "comply", list("n" * 8 + "y" * 32))
    comparison = compared([*pair, again])
    seeming, last = comparison.benchmarks[0], len(comparison.columns) - 1
    fewer = replace(seeming, outcomes=[rows if rows is None else rows[:1] for rows in seeming.outcomes])
    assert mean_rate([seeming, seeming], last).value == pytest.approx(0.85)
    assert mean_rate([seeming, fewer], last) is None and mean_difference([seeming, fewer], last, last - 1) is None


def test_a_run_given_twice_is_not_a_second_seed(pair):
    titles = [column.title for column in compared([pair[0], pair[1], pair[1]]).columns]
    assert len(titles) == len(compared(pair).columns) + 1


def test_a_model_that_was_only_evaluated_has_the_name_of_its_run(tmp_path):
    run = write_run(tmp_path / "served", stages=("evaluate",), models=("aligned",))
    shutil.rmtree(run / "evaluate/base")
    assert [column.title for column in compared([run]).columns] == ["served"]


def test_pareto_front():
    assert pareto_front([(0.1, 0.9), (0.8, 0.8), (0.9, 0.5), (0.7, 0.7), (0.8, 0.8)]) == [0, 1, 2, 4]


def test_categories_are_shown_as_shares(pair):
    for folder in pair:
        categories = ["homo_nyms"] * 10 + ["law"] * 30
        write_benchmark(folder / "evaluate/aligned/seeming", "comply", list("n" * 20 + "y" * 20), categories=categories)
    (table,) = category_tables(compared(pair).columns, compared(pair).benchmarks)
    rows = table.groups[0][1]
    assert [row.name for row in rows] == ["homo nyms (10)", "law (30)"]
    assert rows[0].cells[-1].share == 0 and rows[1].cells[-1].share == pytest.approx(2 / 3)
    leave_out(pair[0] / "evaluate/aligned/seeming", {f"{i}" for i in range(8)})  # compared on the common prompts
    (table,) = category_tables(compared(pair).columns, compared(pair).benchmarks)
    rows = table.groups[0][1]
    assert [row.name for row in rows] == ["homo nyms (2)", "law (30)"]


def test_differences_by_category_are_paired(pair):
    categories = ["homo_nyms"] * 10 + ["law"] * 30
    for folder, answers in zip(pair, ("n" * 20 + "y" * 20, "n" * 5 + "y" * 35), strict=True):
        write_benchmark(folder / "evaluate/aligned/seeming", "comply", list(answers), categories=categories)
    comparison = compared(pair)
    table = category_differences_table(comparison.columns, comparison.benchmarks[0])
    assert table.header == ["DCR"]
    (name, cell), (other, same) = ((row.name, row.cells[0]) for row in table.groups[0][1])
    assert (name, other) == ("homo nyms (10)", "law (30)")
    assert cell.text == "+50.0" and cell.details[0].startswith("+20.0 to +80.0") and same.text == "+33.3"


def test_answers_of_an_earlier_version_have_no_differences_by_category(pair):
    comparison = compared(pair)
    assert category_differences_table(comparison.columns, comparison.benchmarks[0]) is None


def test_agreement_of_judges(pair):
    home = pair[1] / "evaluate/aligned"
    write_benchmark(
        home / "seeming", "comply", list("n" * 4 + "y" * 36),
        rules=list("n" * 3 + "p" + "y" * 36), guard=["harmless"] * 40,
    )  # fmt: skip
    write_benchmark(home / "toxic", "refuse", list("n" * 19 + "y"), rules=list("n" * 19 + "y"), guard=["harmful"] * 20)
    comparison = compared(pair)
    text = "\n".join(map(written, agreement(comparison.columns, comparison.benchmarks)))
    assert re.search(r"rules and xstest_strings \| +60 \| +98\.3% \| +0\.97 \|", text)
    assert "guard and" not in text  # harm is not refusal
    assert "partial refusal" in text
    assert re.search(r"guard +\| +– \| 100\.0% \|", text)


def test_rates_by_judge_are_of_the_prompts_that_all_columns_have(pair):
    for run in pair:
        model = run / "evaluate/aligned/seeming"
        write_benchmark(model, "comply", list("n" * 20 + "y" * 20), rules=list("n" * 20 + "y" * 20))
    leave_out(pair[1] / "evaluate/aligned/seeming", {f"{i}" for i in range(20)})
    comparison = compared(pair)
    assert [rate.value for rate in comparison.benchmarks[0].rates if rate] == [1, 1]
    text = "\n".join(map(written, agreement(comparison.columns, comparison.benchmarks)))
    assert re.search(r"rules +\|( 100\.0% \|| – \|)+\n", text)


def test_general_ability_is_shown_with_its_interval(pair):
    for folder, value in zip(pair, (0.25, 0.5), strict=True):
        score = {"metric": "acc_norm", "value": value, "low": value - 0.1, "high": value + 0.1, "n": 200}
        write(folder / "evaluate/aligned/ability.json", {"settings": {}, "tasks": {"arc_easy": score}})
    comparison = compared(pair)
    table = written(results_table(comparison))
    assert "arc_easy: acc_norm ↑" in table
    assert "**50.0%** (40.0–60.0)" in table and not comparability(comparison)
    score["rows_hash"] = "of others"
    write(pair[0] / "evaluate/aligned/ability.json", {"settings": {}, "tasks": {"arc_easy": score}})
    assert [
        "arc_easy: the models were asked different questions" in text for text in comparability(compared(pair))
    ] == [True]


def test_losses_of_other_tokenizers_are_reported(pair):
    file = pair[1] / "evaluate/aligned/general_loss.json"
    assert not comparability(compared(pair))
    write(file, json.loads(file.read_text()) | {"tokens": 901})
    (remark,) = comparability(compared(pair))
    assert "means over different tokens" in remark


def test_answers_of_different_limits_are_reported(pair, tmp_path):
    short = write_run(tmp_path / "short", stages=STL, evaluate={"max_new_tokens": 8})
    assert "evaluate.max_new_tokens: 128, 8" in comparability(compared([pair[0], short]))[-1]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("scores.json", '{"n": 4}', r"toxic/scores\.json: has no .*wanted, judge, metric.*another version"),
        ("scores.json", "[]", r"scores\.json: is not a mapping"),
        ("generations.jsonl", '{"id": "0", "prompt"', r"generations\.jsonl, line 1: is not JSON"),
        ("generations.jsonl", '{"id": "0"}', r"generations\.jsonl, line 1: has no prompt, completion"),
        ("verdicts.xstest_strings.jsonl", "", r"xstest_strings\.jsonl: has no verdict on 20 of the 20 answers"),
    ],
)
def test_broken_files_are_named(pair, file, content, expected):
    (pair[1] / "evaluate/aligned/toxic" / file).write_text(content)
    with pytest.raises(UserError, match=expected):
        compared(pair)


def test_figures_of_fewer_seeds_than_a_column_has_are_reported(tmp_path):
    seeds = [write_run(tmp_path / f"s{seed}", stages=STL, seed=seed) for seed in range(3)]
    assert not comparability(compared(seeds))
    (seeds[1] / "evaluate/aligned/toxic/scores.json").unlink()
    (remark,) = comparability(compared(seeds))
    assert remark.startswith("STL (3 seeds): not all of the 3 seeds measured toxic (2);")


def test_refusal_and_harmlessness_are_not_in_one_row(pair):
    file = pair[1] / "evaluate/aligned/toxic/scores.json"
    write(file, json.loads(file.read_text()) | {"judge": "guard", "metric": "defence_rate", "counted": ["harmless"]})
    write_rows(file.with_name("verdicts.guard.jsonl"), [{"id": f"{i}", "label": "harmless"} for i in range(20)])
    comparison = compared(pair)
    titles = [column.title for column in comparison.columns]
    toxic = comparison.benchmarks[1]
    assert toxic.rates[titles.index("DCR")] is None and toxic.rates[titles.index("STL")].value == 1
    (remark,) = comparability(comparison)
    assert remark.startswith("toxic: DCR left out: scores of another kind")
    [entry] = comparison.discernment
    assert [bool(figures) for figures in entry.columns] == [title == "STL" for title in titles]
