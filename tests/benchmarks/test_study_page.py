"""The page of the study, from rows that are complete, damaged or missing."""

import os
import sys
from types import SimpleNamespace

import pytest
from scripts import ROOT, run_python

STUDY = ROOT / "benchmarks" / "study"
sys.path[:0] = [str(STUDY), str(STUDY.parent)]

from ablations import Ablation, default_recipe  # noqa: E402
from analysis import PLAN, Study, difference  # noqa: E402
from arms import read_arms, refuse_other_protocols  # noqa: E402
from headline import headline  # noqa: E402
from marks import replace_marked  # noqa: E402
from report import endpoint_section  # noqa: E402
from report import write as write_page  # noqa: E402
from rows import Row, place, read, read_cost, write  # noqa: E402
from secondary import compliance_table  # noqa: E402
from study_results import rename, without_first, written  # noqa: E402

from dcr_ds.errors import UserError  # noqa: E402
from dcr_ds.files import write_json  # noqa: E402


@pytest.mark.parametrize(("separation", "said"), [(3.0, "**supported**"), (0.5, "**not supported**")])
def test_the_page_says_what_the_rows_say(tmp_path, separation, said):
    results, page = tmp_path / "results", tmp_path / "docs" / "RESULTS.md"
    page.parent.mkdir()
    written(results, "stl", 2, 0.5)
    written(results, "dcr", 3, separation)
    written(results, "infonce", 1, separation)
    readme = tmp_path / "README.md"
    readme.write_text("first\n<!-- begin: make study-report -->\nold\n<!-- end: make study-report -->\nlast\n")
    done = run_python("benchmarks/study/report.py", "--results", results, "--out", page, "--readme", readme)
    assert done.returncode == 0, done.stderr[-3000:]
    text = page.read_text()
    table = readme.read_text().split(" -->\n")[1].removesuffix("\n<!-- end: make study-report")
    assert table in text and "STL, 2" in table and "equal data" not in table
    assert readme.read_text().startswith("first\n") and readme.read_text().endswith("\nlast\n")
    cells = next(line for line in text.splitlines() if "XSTest: AUC of the" in line).split("|")
    theirs, ours, gain = (float(cell.split()[0].replace("−", "-")) for cell in cells[3:6])
    assert cells[2].strip() == "2" and gain == pytest.approx(ours - theirs, abs=0.011)  # over the seeds that both have
    assert said in text and "DCR against STL" in text and "Rows of 1 commit;" in text
    images = {"study-fronts.png", "study-arms.png", "study-ablations.png"}
    assert {file.name for file in (page.parent / "images").iterdir()} == images
    assert all(f"images/{image}" in text for image in images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "another"}, "stl/seed-0.json: made with another arm, recipe or sets"),
        ({"judge": "rules 3"}, "judged by rules 3, .* by rules 4; judge the kept answers again"),
        ({"general_loss": None}, "stl/seed-0.json: general_loss: Field required"),
        ({"commit": None}, "stl/seed-0.json: commit: Field required"),
    ],
)
def test_rows_of_another_protocol_or_judge_are_refused(tmp_path, change, message):
    written(tmp_path, "stl", 2, 0.5)
    cost = {key: value for key, value in (read_cost("stl", 0, tmp_path) | change).items() if value is not None}
    write_json(place("stl", 0, tmp_path).cost, cost)
    with pytest.raises(UserError, match=message):
        refuse_other_protocols(read_arms(), tmp_path)


def test_a_page_needs_results_of_both_arms(tmp_path):
    written(tmp_path, "stl", 1, 0.5)
    done = run_python("benchmarks/study/report.py", "--results", tmp_path, "--out", tmp_path / "RESULTS.md")
    assert done.returncode == 2 and "no results of dcr" in done.stderr
    assert not os.path.exists(tmp_path / "RESULTS.md")


@pytest.mark.parametrize("text", ["", "<!-- begin: x -->", "<!-- end: x -->\n<!-- begin: x -->"])
def test_a_page_without_its_marks_is_left_as_it_is(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(UserError, match=r"page.md: needs the line <!-- begin: x -->"):
        replace_marked(page, "x", "new")
    assert page.read_text() == text


def test_arms_and_seeds_of_different_prompts_are_not_compared(tmp_path):
    written(tmp_path, "stl", 2, 0.5)
    written(tmp_path, "dcr", 1, 0.5)
    pair = PLAN.pairs["xstest"]
    for seed in (0, 1):
        without_first("stl", seed, tmp_path)
        study = Study(tmp_path)
        if seed == 0:
            with pytest.raises(UserError, match="stl: seeds 0 and 1 have different prompts of xstest-safe"):
                study.readings("stl", pair)
    with pytest.raises(UserError, match="dcr and stl were measured on different prompts"):
        difference(study.readings("dcr", pair), study.readings("stl", pair), "log_odds")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row._replace(label=None), "dcr, seed 1: xstest-safe, prompt 0: no label"),
        (lambda row: row._replace(margin=None), "dcr, seed 1: xstest-safe, prompt 0: no log-odds or margin"),
        (lambda row: row._replace(set=f"other-{row.set}"), "dcr, seed 1: no prompts of xstest-safe"),
    ],
)
def test_rows_without_a_figure_are_named(tmp_path, change, message):
    written(tmp_path, "dcr", 2, 0.5)
    write(place("dcr", 1, tmp_path), [change(row) for row in read("dcr", 1, tmp_path)], read_cost("dcr", 1, tmp_path))
    with pytest.raises(UserError, match=message):
        Study(tmp_path).readings("dcr", PLAN.pairs["xstest"])


def test_damaged_rows_are_found_before_anything_is_written(tmp_path):
    results = tmp_path / "results"
    for arm in ("stl", "dcr", "infonce"):
        written(results, arm, 1, 0.5)
    rows = [row._replace(margin=None) for row in read("infonce", 0, results)]
    write(place("infonce", 0, results), rows, read_cost("infonce", 0, results))
    with pytest.raises(UserError, match="infonce, seed 0: .*: no log-odds or margin"):
        write_page(Study(results), tmp_path / "RESULTS.md")
    assert [file.name for file in tmp_path.iterdir()] == ["results"]


def test_attacked_prompts_without_a_label_are_named(tmp_path):
    written(tmp_path, "stl", 1, 0.5)
    attacked = Row("builtin-toxic+prefill", "a", None, None, None)
    write(place("stl", 0, tmp_path), [*read("stl", 0, tmp_path), attacked], read_cost("stl", 0, tmp_path))
    with pytest.raises(UserError, match=r"stl, seed 0: builtin-toxic\+prefill, prompt a: no label"):
        Study(tmp_path).attacks("stl")


def test_seeds_that_an_arm_does_not_have_are_refused(tmp_path):
    written(tmp_path, "scans", 1, 0.5)
    for part in place("scans", 0, tmp_path):
        part.with_name(part.name.replace("seed-0", "seed-00")).write_bytes(part.read_bytes())
    assert Study(tmp_path).seeds("scans") == [0]
    rename("scans", 0, 5, tmp_path)
    with pytest.raises(UserError, match=r"seed-5.json: scans has the seeds 0 to 4"):
        refuse_other_protocols(read_arms(), tmp_path)


def test_compliance_at_given_refusal_is_that_of_single_thresholds(tmp_path):
    """Against the best threshold of each seed that refuses enough harmful prompts."""
    written(tmp_path, "stl", 2, 0.5)
    written(tmp_path, "dcr", 2, 2.0)
    study = Study(tmp_path)
    table = {line.split("|")[1].strip(): line.split("|")[2:] for line in compliance_table(study, ["dcr"]).splitlines()}
    readings = study.readings("dcr", PLAN.pairs["xstest"])
    for place_in_table, refusal in enumerate((0.80, 0.90, 0.95)):
        best = [
            max((row[~readings.harmful] < t).mean() for t in row if (row[readings.harmful] >= t).mean() >= refusal)
            for row in readings.log_odds
        ]
        assert table["dcr"][place_in_table].strip() == f"{100 * sum(best) / 2:.1f}%"


def test_arms_without_a_common_seed_are_not_compared(tmp_path):
    results = tmp_path / "results"
    written(results, "stl", 1, 0.5)
    written(results, "dcr", 1, 0.5)
    for arm in ("scans", "infonce", "equal-data"):
        written(results, arm, 1, 0.5)
        rename(arm, 0, 2, results)
    write_page(Study(results), tmp_path / "RESULTS.md")
    assert "## Hypothesis 3" not in (tmp_path / "RESULTS.md").read_text()
    rename("dcr", 0, 1, results)
    with pytest.raises(UserError, match="stl and dcr have no seed in common"):
        write_page(Study(results), tmp_path / "RESULTS.md")


def test_the_success_of_attacks_is_compared_at_the_same_seeds(tmp_path):
    """DCR answers one attacked prompt of two more than STL at both of their seeds, 1 and 2."""
    for arm, first, answered in (("stl", 1, {1: 0, 2: 1}), ("dcr", 0, {0: 0, 1: 1, 2: 2})):
        written(tmp_path, arm, 3, 0.5)
        for seed in range(first, 3):
            labels = ["compliance"] * answered[seed] + ["full_refusal"] * (2 - answered[seed])
            rows = [Row("builtin-toxic+prefill", str(number), None, None, label) for number, label in enumerate(labels)]
            write(
                place(arm, seed, tmp_path),
                [*read(arm, seed, tmp_path), *rows],
                read_cost(arm, seed, tmp_path),
            )
    (line,) = (line for line in headline(Study(tmp_path)).splitlines() if "prefilled answer" in line)
    assert line.split("|")[-2].strip() == "+50.0 (+50.0 to +50.0)"


def test_a_difference_below_zero_is_reported_as_harm(tmp_path):
    written(tmp_path, "stl", 2, 3.0)
    written(tmp_path, "dcr", 2, 0.0)
    assert "Harm: XSTest, AUC; XSTest, Youden's J" in endpoint_section(Study(tmp_path), "stl")


def test_the_default_changes_only_by_the_rule_of_the_protocol():
    def ablation(name: str, values: tuple[float, float], p: tuple[float, float]) -> Ablation:
        return Ablation(name, 3, [{"value": value} for value in values], list(p))

    done = SimpleNamespace(seeds=lambda name: [0, 1, 2])
    better = ablation("supcon", (0.05, 0.01), (0.01, 0.9))
    others = [
        ablation("layer-12", (0.2, -0.001), (0.001, 1.0)),  # lower on one pair
        ablation("layer-16", (0.2, 0.2), (0.06, 0.06)),  # not significant
    ]
    assert default_recipe(done, others).endswith("the default stays.")
    assert "supcon becomes the default" in default_recipe(done, [*others, better])
    best = ablation("infonce", (0.05, 0.02), (0.03, 0.9))
    assert "infonce becomes the default" in default_recipe(done, [best, *others, better])
    unfinished = SimpleNamespace(seeds=lambda name: [0, 1, 2] if name != "ntxent" else [2])
    assert default_recipe(unfinished, [better]).startswith("1 of ")
