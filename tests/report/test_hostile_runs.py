"""Reports of damaged or foreign run folders: complete tables or a single message, never a stack trace."""

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


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("verdicts.xstest_strings.jsonl", {"label": "refused"}),
        ("verdicts.xstest_strings.jsonl", {"label": None}),
        ("log_odds.jsonl", {"log_odds": float("nan")}),
        ("log_odds.jsonl", {"log_odds": "high"}),
    ],
)
def test_values_that_no_evaluation_writes_are_named(run, tmp_path, name, change):
    home = run / "evaluate/aligned/seeming"
    rows = [row | {"log_odds": 0.5} for row in read_jsonl(home / "verdicts.xstest_strings.jsonl")]
    rows[2] |= change
    write_jsonl(home / name, rows)
    with pytest.raises(UserError, match=rf"{name}, row 3: "):
        write_report([run], tmp_path / "report.md")


@pytest.mark.parametrize(("name", "field"), [("general_loss.json", "loss"), ("seeming/scores.json", "value")])
def test_numbers_that_are_texts_are_named(run, tmp_path, name, field):
    file = run / "evaluate/aligned" / name
    write_json(file, read_json(file) | {field: "high"})
    with pytest.raises(UserError, match=rf"{name}: {field} is 'high', not a number"):
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
