"""Reports of attacked benchmarks and of conversations, and what the standard table says about what was not measured."""

import json

import pytest
from run_folders import write, write_benchmark, write_model, write_run
from small_runs import write_rows

from dcr_ds.recipe.layout import RunFolder
from dcr_ds.report.numbers.attacks import measured_attacks
from dcr_ds.report.numbers.columns import result_columns
from dcr_ds.report.numbers.comparison import Comparison, compare
from dcr_ds.report.numbers.measured import measured_benchmarks
from dcr_ds.report.numbers.read import read_run
from dcr_ds.report.render.markdown import table_rows, written
from dcr_ds.report.sections.comparability import comparability
from dcr_ds.report.sections.differences import differences_table
from dcr_ds.report.sections.examples import examples
from dcr_ds.report.sections.headline import headline
from dcr_ds.report.sections.results import results_table, standard_table


def write_attack(home, letters, name="prefill"):
    """Answers to the prompts of the benchmark `toxic` under an attack; y is a success."""
    attacked = home.with_name(f"{home.name}+{name}")
    write_benchmark(attacked, "refuse", list(letters))
    score = json.loads((attacked / "scores.json").read_text())
    score |= {"metric": "attack_success_rate", "counted": ["compliance"], "value": letters.count("y") / len(letters)}
    score |= {"attack": name, "attacked": home.name, "by_judge": {}}
    write(attacked / "scores.json", score)
    rows = [json.loads(line) for line in (attacked / "generations.jsonl").read_text().splitlines()]
    for row in rows:  # the prompts are those of the benchmark
        row["prompt"] = row["prompt"].replace(attacked.name, home.name)
    write_rows(attacked / "generations.jsonl", rows)


@pytest.fixture
def run(tmp_path):
    """A run with a control: DCR discerns better, but two attacks succeed more often."""
    folder = write_run(tmp_path / "run", models=())
    for model in ("base", "control", "aligned"):
        write_model(RunFolder(folder), model, 2.0)
        home = RunFolder(folder).model(model).benchmark("toxic").folder
        refused = {"base": 0, "control": 36, "aligned": 12}[model]
        write_attack(home, "n" * refused + "y" * (40 - refused))
        write_attack(home, "y" * 4 + "n" * 36, "suppression")
    return folder


def remarks_of(run):
    """What makes the columns of a run not comparable; without the intervals of discernment, which take time."""
    read = read_run(run)
    columns = result_columns([read])
    return comparability(
        Comparison([read], columns, measured_benchmarks(columns), measured_attacks(columns), discernment=[])
    )


def rows_of(table):
    return {row[0]: row[1:] for row in table_rows(table)}


def test_attack_success_is_shown_per_attack_and_in_the_worst_case(run):
    comparison = compare([read_run(run)])
    assert [benchmark.name for benchmark in comparison.benchmarks] == ["seeming", "toxic"]
    assert [attack.name for attack in comparison.attacks] == ["toxic+prefill", "toxic+suppression", "toxic, worst case"]
    rows = rows_of(results_table(comparison))
    assert rows["toxic, prefill: success ↓"][:1] == ["40"]
    assert [cell.split()[0] for cell in rows["toxic, prefill: success ↓"][1:]] == ["100.0%", "10.0%", "70.0%"]
    # plain prompts: the control refuses 24, DCR 32 of 40 (the first ones); suppression succeeds on the first 4
    worst = [rate.value for rate in comparison.attacks[-1].rates if rate]  # without refined, which answered nothing
    assert worst == pytest.approx([1.0, (16 + 4) / 40, (28 + 4) / 40])
    assert comparison.attacks[-1].rates[1].low < 0.5 < comparison.attacks[-1].rates[1].high
    bold = written(results_table(comparison))
    assert "**10.0%** (30.0–95.0)" in bold  # the best attack success is the lowest


def test_a_sentence_says_that_attacks_succeed_more_often_if_the_interval_excludes_zero(run):
    text = headline(compare([read_run(run)]))
    assert "Attacks succeed more often on DCR than on STL: toxic, prefill (+60.0 points, 95% interval" in text
    assert "toxic, suppression" not in text and "toxic, worst case" in text
    home = RunFolder(run).model("aligned").benchmark("toxic").folder
    write_attack(home, "n" * 36 + "y" * 4)
    (RunFolder(run).model("aligned").benchmark("toxic+suppression").scores).unlink()
    assert "Attacks succeed" not in headline(compare([read_run(run)]))


def test_attacks_are_among_the_differences_and_not_in_discernment_or_examples(run):
    comparison = compare([read_run(run)])
    assert rows_of(differences_table(comparison))["toxic, prefill: success ↓"][-1].startswith("+60.0 (")
    [entry] = comparison.discernment
    assert entry.n_harmful == 40
    titles = [block.title for block in examples(comparison.columns) if hasattr(block, "title")]
    assert titles and not any("+" in title for title in titles)


def test_what_makes_attacks_not_comparable_is_reported(run):
    """Other judges, and other versions of one; those of two attacks differ by the opening."""
    files = [RunFolder(run).model(name).benchmark("toxic+prefill").scores for name in ("control", "aligned")]
    assert not remarks_of(run)
    scores = [json.loads(file.read_text()) for file in files]
    write(files[1], scores[1] | {"judge_version": "4-x"})
    (remark,) = remarks_of(run)
    assert "different versions of xstest_strings" in remark
    other = scores[1]["judge"].replace("xstest", "advbench")
    write(files[1], scores[1] | {"judge": other})
    verdicts = files[1].with_name("verdicts.xstest_strings.jsonl")
    verdicts.rename(files[1].with_name(f"verdicts.{other}.jsonl"))
    (remark,) = remarks_of(run)
    assert remark.startswith("toxic+prefill: judged by advbench_strings, xstest_strings")
    worst = measured_attacks(result_columns([read_run(run)]))[-1].rates
    assert worst[-1] is None and worst[1] is not None  # of two judges there is none


def test_a_column_without_an_attack_has_no_worst_case(run):
    for file in RunFolder(run).model("base").benchmark("toxic+prefill").folder.iterdir():
        file.unlink()
    worst = compare([read_run(run)]).attacks[-1]
    assert worst.rates[0] is None and worst.rates[1] is not None and worst.n == 40


def test_the_standard_table_says_what_was_not_measured(tmp_path, run):
    table = standard_table(compare([read_run(run)]))
    assert [title for title, _ in table.groups] == [
        "Over-refusal: harmless prompts",
        "Safety: harmful prompts",
        "Safety under attack: answered harmful prompts",
        "Discernment: all harmless against all harmful prompts",
        "General ability",
    ]
    rows = rows_of(table)
    assert "rates: not measured" not in rows and "accuracy: not measured" in rows
    assert rows["Youden's J, judged answers ↑"][:2] == ["", "0.000 (−0.09 to 0.09)"]
    bare = rows_of(standard_table(compare([read_run(write_run(tmp_path / "bare"))])))
    assert bare["rates: not measured"] == ["", "–", "–", "–"] and "rates: not measured" not in rows
    assert standard_table(compare([read_run(write_run(tmp_path / "none", stages=("refine", "align")))])) is None


def test_conversations_are_shown_with_their_earlier_turns(run):
    context = [{"role": "user", "content": "We write a play."}, {"role": "assistant", "content": "About what?"}]
    for model in ("base", "control", "aligned"):
        file = RunFolder(run).model(model).benchmark("seeming").generations
        rows = [json.loads(line) | {"context": context} for line in file.read_text().splitlines()]
        write_rows(file, rows)
    blocks = examples(compare([read_run(run)]).columns)
    prompts = [example.prompt for block in blocks if hasattr(block, "examples") for example in block.examples]
    assert any(text.startswith("User: We write a play.\n\nAssistant: About what?\n\nUser: seeming") for text in prompts)


def test_twins_of_answers_stay_together_without_log_odds(run):
    def width():
        return [
            figures.measures["youden_j"]["high"] - figures.measures["youden_j"]["low"]
            for figures in compare([read_run(run)]).discernment[0].columns
            if figures
        ]

    for model in ("base", "control", "aligned"):
        for name in ("seeming", "toxic"):
            RunFolder(run).model(model).benchmark(name).log_odds.unlink()
    alone = width()
    for model in ("base", "control", "aligned"):
        for name in ("seeming", "toxic"):
            file = RunFolder(run).model(model).benchmark(name).generations
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            write_rows(file, [row | {"pair": f"pair {row['id']}"} for row in rows])
    assert width() != alone
