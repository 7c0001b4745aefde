"""Reports of damaged or foreign run folders: complete tables or a single message, never a stack trace."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_folders import write_benchmark, write_run

from dcr_ds.errors import UserError
from dcr_ds.files import read_json, read_jsonl, write_json, write_jsonl
from dcr_ds.report import terminal_table, write_report

NASTY = [
    "a\nb",
    "a|b",
    "a\r\n\r\n# c",
    "\x1b[31mred",
    "<script>alert(1)</script>",
    "`x`",
    "a\u2028b",
    "x" * 5000,
    "law",
]


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "run")
    answers = ["y", "n"] * len(NASTY)
    for model in ("base", "aligned"):
        home = folder / "evaluate" / model / "seeming"
        for file in home.iterdir():
            file.unlink()
        write_benchmark(home, "comply", answers, categories=[name for name in NASTY for _ in range(2)])
    return folder


def test_no_category_breaks_a_table(run, tmp_path):
    write_report([run], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert any("law" in block for block in tables)
    for block in tables:
        rows = block.split("\n")
        assert all(row.startswith("| ") and row.endswith(" |") for row in rows)
        assert len({len(_cells(row)) for row in rows}) == 1, block
    assert "\x1b" not in text and "<script>" not in text and max(map(len, text.splitlines())) < 2000
    assert "\x1b" not in terminal_table([run])


def _cells(row):
    """The cells of a Markdown table row, where an escaped bar is text."""
    return row.replace("\\|", "").strip("|").split("|")


BENCHMARK = "evaluate/aligned/seeming"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("verdicts.xstest_strings.jsonl", {"label": "refused"}),
        ("verdicts.xstest_strings.jsonl", {"label": None}),
        ("verdicts.xstest_strings.jsonl", {"id": "0"}),
        ("generations.jsonl", {"id": "0"}),
        ("generations.jsonl", {"completion": None}),
        ("generations.jsonl", {"category": ["a"]}),
        ("log_odds.jsonl", {"log_odds": float("nan")}),
        ("log_odds.jsonl", {"log_odds": "high"}),
        ("log_odds.jsonl", {"log_odds": True}),
        ("log_odds.jsonl", {"id": 2}),
    ],
)
def test_rows_that_no_evaluation_writes_are_named(run, tmp_path, name, change):
    file = run / BENCHMARK / name
    rows = read_jsonl(file) or [{"id": f"{i}", "log_odds": 0.5} for i in range(18)]
    rows[2] |= change
    write_jsonl(file, rows)
    (field,) = change
    with pytest.raises(UserError, match=rf"{name}, line 3: .*{field}.*; remove the line, and repeat the command"):
        write_report([run], tmp_path / "report.md")


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("evaluate/aligned/general_loss.json", {"loss": "high"}, "loss: input should be a valid number"),
        ("evaluate/aligned/general_loss.json", {"loss": None}, "loss: input should be a valid number"),
        ("evaluate/aligned/cost.json", {"parts": {"a": 3}}, "parts.a: input should be a valid dict"),
        (f"{BENCHMARK}/scores.json", {"value": "high"}, "value: input should be a valid number"),
        (f"{BENCHMARK}/scores.json", {"wanted": "both"}, "wanted: input should be 'comply' or 'refuse'"),
        (f"{BENCHMARK}/scores.json", {"counted": "compliance"}, "counted: input should be a valid list"),
        (f"{BENCHMARK}/scores.json", {"by_category": {"law": {"n": 1}}}, "has no by_category.law.value"),
        ("evaluate/aligned/ability.json", {"tasks": {"piqa": 0.5}}, "tasks.piqa: input should be a valid dict"),
        ("align/summary.json", {"wall_seconds": "long"}, "wall_seconds: input should be a valid number"),
        ("align/summary.json", {"start": [1]}, "start: input should be a valid dict"),
        ("refine/summary.json", {"layer": "15"}, "layer: input should be a valid integer"),
        ("environment.json", {"data": {"toxic": {"rows": "96"}}}, "data.toxic.rows: input should be a valid integer"),
        ("environment.json", {"notes": "none"}, "notes: input should be a valid list"),
    ],
)
def test_fields_of_another_type_are_named(run, tmp_path, name, change, problem):
    write_json(run / name, (read_json(run / name) or {}) | change)
    with pytest.raises(UserError, match=re.escape(f"{name}: {problem}")):
        write_report([run], tmp_path / "report.md")


@pytest.mark.parametrize("kept", [17, 0])
def test_answers_that_the_scores_do_not_count_are_named(run, tmp_path, kept):
    """As when an evaluation under other settings was interrupted, beside the scores of the one before."""
    file = run / BENCHMARK / "generations.jsonl"
    write_jsonl(file, read_jsonl(file)[:kept])
    with pytest.raises(UserError, match=f"has {kept} answers, but scores.json counts 18; run the evaluation again"):
        write_report([run], tmp_path / "report.md")


def test_half_a_line_of_a_finished_stage_can_be_removed(run, tmp_path):
    """The stage is done, so that repeating the run would not write it again."""
    file = run / "align/metrics.jsonl"
    file.write_text('{"step": 1, "log_odds_toxic": null}\n{"step": 2, "log')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: is not JSON .*; remove the line"):
        write_report([run], tmp_path / "report.md")
    file.write_text(file.read_text().partition("\n")[0])
    write_report([run], tmp_path / "report.md")


def test_a_report_overwrites_no_file_of_a_run(run):
    before = (run / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match="must name the Markdown file, such as recipe.md"):
        write_report([run], run / "recipe.yaml")
    assert (run / "recipe.yaml").read_bytes() == before


def test_a_run_is_not_compared_with_itself(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(UserError, match="link: this run is named twice"):
        write_report([run, tmp_path / "link"], tmp_path / "report.md")


FILES = ["environment.json", "align/summary.json", "refine/summary.json", "evaluate/base/toxic/scores.json",
         "evaluate/base/toxic/generations.jsonl", "evaluate/base/toxic/verdicts.xstest_strings.jsonl",
         "evaluate/base/general_loss.json", "recipe.yaml"]  # fmt: skip
CONTENTS = ["", "{}", "[]", "null", '{"a": ', "\0\0", "[" * 2000, "1", '"text"', "a: &a [*a]", "- 1", '{"a": 1}\n{"b"']


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_of_a_run_is_one_message(tmp_path_factory, data):
    folder = write_run(tmp_path_factory.mktemp("runs") / "run")
    for name in data.draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=2, unique=True)):
        if (folder / name).exists():
            (folder / name).write_text(data.draw(st.sampled_from(CONTENTS)))
    try:
        write_report([folder], folder / "report.md")
    except UserError as error:
        assert str(folder) in str(error)
