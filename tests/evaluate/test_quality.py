"""Pairwise quality with a server of known preferences: by content, by position, by length, or none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from chat_server import HangUp, prompt_of, says, serving
from tiny import one_thread_environment

from dcr_ds.commands.compare_quality import run
from dcr_ds.errors import UserError
from dcr_ds.evaluate.quality import Pair, read_pairs, summarise, winner
from dcr_ds.files import read_jsonl, write_jsonl
from dcr_ds.models import endpoint as endpoint_module

COUNT = 12


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_SECONDS", 0.005)


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """Generations of two models; A's are good, except for every third."""
    rows = [{"id": f"p{i}", "prompt": f"question {i}", "completion": f"{'bad' if i % 3 == 0 else 'good'} {i} long"}
            for i in range(COUNT)]  # fmt: skip
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "b.jsonl", [{**row, "completion": f"fair {row['id']}"} for row in reversed(rows)])
    return tmp_path / "a.jsonl", tmp_path / "b.jsonl"


def by_content(number: int, request: dict):
    """Prefer good to fair to bad, in any position."""
    first, second = (
        prompt_of(request).split(f"<{place} ")[1].split("\n")[1].split()[0] for place in ("first", "second")
    )
    worth = {"good": 2, "fair": 1, "bad": 0}
    return says(f"Why.\nLABEL: {'first' if worth[first] > worth[second] else 'second'}")


def compare(files, out: Path, behaviour, *more: str) -> dict:
    with serving(behaviour) as server:
        arguments = [*map(str, files), "--judge-url", server.url, "--model", "judge", "--out", str(out), *more]
        assert run(arguments) == 0
    return {**json.loads(out.with_suffix(".json").read_text()), "requests": len(server.requests)}


def test_the_better_answer_wins_in_both_orders(files, tmp_path):
    summary = compare(files, tmp_path / "q.jsonl", by_content)
    assert (summary["wins"], summary["ties"], summary["losses"], summary["unparsed"]) == (8, 0, 4, 0)
    assert summary["win_rate"]["value"] == pytest.approx(8 / 12) and summary["win_rate"]["n"] == 12
    assert summary["requests"] == 2 * COUNT
    rows = read_jsonl(tmp_path / "q.jsonl")
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(COUNT)]
    assert rows[0] == {"id": "p0", "a_first": "second", "b_first": "first", "winner": "b", "key": rows[0]["key"]}


def test_comparisons_are_antisymmetric(files, tmp_path):
    there = compare(files, tmp_path / "q.jsonl", by_content)
    back = compare(files[::-1], tmp_path / "r.jsonl", by_content)
    assert there["win_rate"]["value"] == pytest.approx(1 - back["win_rate"]["value"])
    assert there["win_rate"]["low"] == pytest.approx(1 - back["win_rate"]["high"])


def test_a_judge_with_position_bias_gives_ties(files, tmp_path):
    summary = compare(files, tmp_path / "q.jsonl", lambda number, request: says("LABEL: first"))
    assert (summary["win_rate"]["value"], summary["ties"], summary["turned_with_the_order"]) == (0.5, COUNT, COUNT)


def test_unparsed_verdicts_are_counted_and_not_guessed(files, tmp_path, capsys):
    summary = compare(files, tmp_path / "q.jsonl", lambda number, request: says("Both are nice."))
    assert (summary["unparsed"], summary["win_rate"]["n"], summary["win_rate"]["value"]) == (COUNT, 0, None)
    assert "no reply could be parsed" in capsys.readouterr().err


def test_a_judge_with_length_bias_is_detected(files, tmp_path):
    def longer(number, request):
        first, second = (len(prompt_of(request).split(f"<{place} ")[1].split("\n")[1]) for place in ("first", "second"))
        return says(f"LABEL: {'first' if first > second else 'second'}")

    summary = compare(files, tmp_path / "q.jsonl", longer)
    assert summary["longer_won"]["value"] == 1.0
    assert summary["mean_characters"]["a"] > summary["mean_characters"]["b"]


@pytest.mark.parametrize(
    ("a_first", "b_first", "expected"),
    [
        ("first", "second", "a"),
        ("second", "first", "b"),
        ("first", "first", "tie"),
        ("second", "second", "tie"),
        ("tie", "tie", "tie"),
        ("tie", "second", "tie"),
        ("unparsed", "second", "unparsed"),
        ("first", "unparsed", "unparsed"),
    ],
)
def test_a_winner_must_win_in_both_orders(a_first, b_first, expected):
    assert winner(a_first, b_first) == expected


def test_ties_are_half_a_win():
    pairs = [Pair(str(i), "", "aa", "b") for i in range(4)]
    rows = [{"winner": name, "a_first": "tie", "b_first": "tie"} for name in ("a", "tie", "tie", "b")]
    assert summarise(pairs, rows)["win_rate"]["value"] == 0.5


def test_judged_pairs_are_not_judged_again(files, tmp_path):
    out = tmp_path / "q.jsonl"
    first = compare(files, out, by_content)
    rows = out.read_bytes()
    again = compare(files, out, by_content)
    assert again.pop("requests") == 0 and first.pop("requests") and first == again and out.read_bytes() == rows
    changed = read_jsonl(files[0])
    changed[3]["completion"] = "good now"
    write_jsonl(files[0], changed)
    assert compare(files, out, by_content)["requests"] == 2


def test_a_file_of_something_else_is_not_overwritten(files, tmp_path):
    other = tmp_path / "prompts.jsonl"
    for content in ('{"id": "p0", "key": "k", "prompt": "How do I kill a process?"}\n', "no JSON\n"):
        other.write_text(content)
        with (
            serving(by_content) as server,
            pytest.raises(UserError, match=r"prompts\.jsonl: exists and does not contain"),
        ):
            run([*map(str, files), "--judge-url", server.url, "--model", "judge", "--out", str(other)])
        assert other.read_text() == content and not server.requests


def test_verdicts_before_a_server_failure_are_kept(files, tmp_path):
    def dies(number, request):
        if "question 7" in prompt_of(request):
            raise HangUp
        return by_content(number, request)

    out = tmp_path / "q.jsonl"
    with pytest.raises(UserError, match="10 of 24 are left"):
        compare(files, out, dies, "--concurrency", "1")
    rows = [(row["id"], "a_first" in row, "b_first" in row) for row in read_jsonl(out)]
    assert rows == [(f"p{i}", a_first, not a_first) for i in range(7) for a_first in (True, False)]
    assert compare(files, out, by_content)["requests"] == 10


def test_a_killed_comparison_resumes_to_the_same_result(files, tmp_path):
    compare(files, tmp_path / "undisturbed.jsonl", by_content)
    out, seen_by_all = tmp_path / "q.jsonl", []
    script = "import sys; from dcr_ds.commands.compare_quality import run; sys.exit(run(sys.argv[1:]))"
    for kill_at in (3, 9, None):
        child: list[subprocess.Popen] = []

        def behaviour(number, request, kill_at=kill_at, child=child):
            if number == kill_at:
                os.kill(child[0].pid, signal.SIGKILL)
                raise HangUp
            return by_content(number, request)

        with serving(behaviour) as server:
            command = [sys.executable, "-c", script, *map(str, files), "--judge-url", server.url, "--model", "judge"]
            child.append(
                subprocess.Popen(
                    [*command, "--out", str(out), "--concurrency", "1"],
                    env=one_thread_environment(),
                    stdout=subprocess.DEVNULL,
                )
            )
            assert child[0].wait(60) == (0 if kill_at is None else -signal.SIGKILL)
        seen_by_all.append(len(server.requests))
    assert out.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    assert sum(seen_by_all) <= 2 * COUNT + 2 * 2  # at most the killed request and the one before it


# Bad input


def refused(*arguments: object) -> str:
    with pytest.raises(UserError) as error:
        run([str(argument) for argument in arguments])
    return str(error.value)


def test_bad_options(files, tmp_path):
    judge = ["--judge-url", "http://127.0.0.1:9/v1", "--model", "judge"]
    assert "--judge-url, --model, --out" in refused(*files)
    assert "--modle" in refused(*files, *judge, "--out", "q.jsonl", "--modle", "x")
    assert "q.json does not end in .jsonl" in refused(*files, *judge, "--out", "q.json")
    assert "is one of the input files" in refused(*files, *judge, "--out", files[1])
    assert "are the same file" in refused(files[0], files[0], *judge, "--out", "q.jsonl")
    assert "--concurrency" in refused(*files, *judge, "--out", "q.jsonl", "--concurrency", "0")
    assert "'many' is not a whole number above 0" in refused(
        *files, *judge, "--out", "q.jsonl", "--concurrency", "many"
    )


def test_files_that_cannot_be_compared(files, tmp_path):
    a, b = files
    rows = read_jsonl(b)
    other = tmp_path / "other.jsonl"
    assert "no such file" in refused(a, other, *OPTIONS)
    for changed, expected in [
        (rows[1:], "1 ids are in one file only, such as 'p11'"),
        ([{**rows[0], "prompt": "else"}, *rows[1:]], "the prompt of 'p11' differs"),
        ([*rows, rows[0]], "line 13: the id 'p11' is also that of line 1"),
        (
            [{"id": "p0", "text": "x"}],
            "no column 'prompt'; columns: id, text. Name the right one with --columns prompt=COLUMN",
        ),
        ([], "the file is empty"),
    ]:
        write_jsonl(other, changed)
        assert expected in refused(a, other, *OPTIONS)


OPTIONS = ("--judge-url", "http://127.0.0.1:9/v1", "--model", "judge", "--out", "q.jsonl")


def test_pairs_are_in_the_order_of_the_first_file(files):
    assert [pair.id for pair in read_pairs(*files)] == [f"p{i}" for i in range(COUNT)]


def test_an_answer_that_the_server_withheld_is_no_loss(files, tmp_path, capsys):
    rows = read_jsonl(files[1])
    finishes = {"p0": "filtered", "p1": "error", "p2": "stop"}
    write_jsonl(
        files[1], [r | {"completion": "", "finish": finishes[r["id"]]} if r["id"] in finishes else r for r in rows]
    )
    assert [pair.id for pair in read_pairs(*files)] == [f"p{i}" for i in range(2, COUNT)]
    assert "2 of 12 pairs left out: a server withheld an answer" in capsys.readouterr().err
    write_jsonl(files[1], [row | {"completion": "", "finish": "error"} for row in rows])
    with pytest.raises(UserError, match="nothing to compare"):
        read_pairs(*files)


def test_a_bad_line_is_reported_as_by_the_judge_and_left_out_of_both_files(files, tmp_path, capsys):
    from dcr_ds.judges.rows import read_answers

    other = tmp_path / "other.jsonl"
    lines = files[0].read_text(encoding="utf-8").splitlines()
    cases = [
        ('{"id": "p3", "prompt": "que', "not valid JSON"),
        ('{"id": "p3", "prompt": "x"}', "'completion' is missing"),
    ]
    for line, problem in cases:
        other.write_text("\n".join([*lines[:3], line, *lines[4:]]), encoding="utf-8")
        assert [pair.id for pair in read_pairs(files[0], other)] == [f"p{i}" for i in range(COUNT) if i != 3]
        (note,) = read_answers(str(other)).notes
        assert note.startswith("1 of 12 answers left out: ") and problem in note and "line 4" in note
        assert capsys.readouterr().err == f"{other}: {note}\n"
    assert [pair.id for pair in read_pairs(other, files[0])] == [f"p{i}" for i in range(COUNT) if i != 3]
