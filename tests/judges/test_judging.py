"""Files of verdicts: one verdict per row, none judged twice, after kills, repetitions and changes."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import one_thread_environment

from dcr_ds.errors import UserError
from dcr_ds.files import read_jsonl, write_jsonl
from dcr_ds.judges import Answer, Verdict, load_judge, verdicts
from dcr_ds.judges.judging import judge_file, judge_rows
from dcr_ds.judges.rows import AnswerRow

COMPLETIONS = ["Sorry.", "Sure.", "", "line\u2028separator", "Sure.", "No, never.", "“Curly”", "I cannot help."]
# The judge `rules`, slowed down; every answer is recorded before it is judged.
SLOW_RUN = """
import sys, time
from pathlib import Path
from dcr_ds.judges import load_judge
from dcr_ds.judges.judging import judge_file

class Slow:
    rules = load_judge("rules")
    name, version, judges = rules.name, rules.version, rules.judges
    def label(self, answers):
        with open(sys.argv[3], "a") as asked:
            for index, verdict in self.rules.label(answers):
                print(answers[index].completion, file=asked, flush=True)
                time.sleep(0.01)
                yield index, verdict

print("ready", flush=True)
judge_file(Path(sys.argv[1]), Slow(), Path(sys.argv[2]))
"""


class Counted:
    """xstest_strings, which records the answers it gets and fails at a given answer."""

    judges = "refusal"

    def __init__(self, version="1", fails_at=None):
        self.name, self.version, self.fails_at = "counted", version, fails_at
        self.asked = []

    def label(self, answers):
        for number, answer in enumerate(answers):
            if number == self.fails_at:
                raise UserError("the endpoint is down")
            self.asked.append(answer.completion)
            yield number, *verdicts(load_judge("xstest_strings"), [answer])


@pytest.fixture
def generations(tmp_path):
    rows = [{"id": str(i), "prompt": "Tell me.", "completion": text} for i, text in enumerate(COMPLETIONS)]
    write_jsonl(tmp_path / "generations.jsonl", rows)
    return tmp_path / "generations.jsonl"


def labels_of(rows):
    return [row["label"] for row in rows]


def test_every_row_gets_a_verdict_in_order(generations, tmp_path):
    verdicts = judge_file(generations, load_judge("xstest_strings"), tmp_path / "v.jsonl")
    assert verdicts == read_jsonl(tmp_path / "v.jsonl")
    assert [list(row) for row in verdicts] == [["id", "label", "score", "key"]] * len(COMPLETIONS)
    assert [(row["id"], row["label"], row["score"]) for row in verdicts[:4]] == [
        ("0", "full_refusal", 1.0),
        ("1", "compliance", 0.0),
        ("2", "degenerate", None),
        ("3", "compliance", 0.0),
    ]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["generations.jsonl", "v.jsonl"]


def test_equal_answers_are_judged_once_and_a_second_run_judges_nothing(generations, tmp_path):
    first, second = Counted(), Counted()
    rows = judge_file(generations, first, tmp_path / "v.jsonl")
    assert sorted(first.asked) == sorted(set(COMPLETIONS))
    assert judge_file(generations, second, tmp_path / "v.jsonl") == rows and second.asked == []


def test_only_what_changed_is_judged_again(generations, tmp_path):
    judge_file(generations, Counted(), tmp_path / "v.jsonl")
    rows = read_jsonl(generations)
    rows[1]["completion"] = "Surely."
    write_jsonl(generations, [{"id": "new", "prompt": "Tell me.", "completion": "New."}, *rows])
    again = Counted()
    verdicts = judge_file(generations, again, tmp_path / "v.jsonl")
    assert sorted(again.asked) == ["New.", "Surely."]
    assert [row["id"] for row in verdicts] == ["new", *map(str, range(len(COMPLETIONS)))]


def test_a_new_version_prompt_or_finish_reason_is_judged_again(generations, tmp_path):
    out = tmp_path / "v.jsonl"
    judge_file(generations, Counted(), out)
    newer = Counted(version="2")
    judge_file(generations, newer, out)
    assert len(newer.asked) == len(set(COMPLETIONS))
    changed = [
        AnswerRow("0", answer, {}) for answer in [Answer("Else?", "Sorry."), Answer("Tell me.", "Sorry.", "length")]
    ]
    for row in changed:
        again = Counted(version="2")
        judge_rows([row], again, out)
        assert again.asked == ["Sorry."]


def test_verdicts_before_a_failure_are_kept(generations, tmp_path):
    out = tmp_path / "v.jsonl"
    with pytest.raises(UserError, match="down"):
        judge_file(generations, Counted(fails_at=3), out)
    assert not out.exists()
    rest = Counted()
    judge_file(generations, rest, out)
    assert len(rest.asked) == len(set(COMPLETIONS)) - 3
    assert labels_of(read_jsonl(out)) == labels_of(judge_file(generations, Counted(), tmp_path / "undisturbed.jsonl"))


@pytest.mark.parametrize("torn", [1, 20, 60, 75])
def test_an_incomplete_line_is_judged_again(generations, tmp_path, torn):
    out = tmp_path / "v.jsonl"
    with pytest.raises(UserError):
        judge_file(generations, Counted(fails_at=2), out)
    unfinished = tmp_path / "v.jsonl.unfinished"
    unfinished.write_bytes(unfinished.read_bytes()[:-torn])
    judge_file(generations, Counted(), out)
    judge_file(generations, Counted(), tmp_path / "undisturbed.jsonl")
    assert out.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()


def test_other_columns_are_kept_and_never_overwrite_a_verdict(tmp_path):
    others = {"type": "homonyms", "label": "safe", "score": 3, "key": "k"}
    (row,) = judge_rows([AnswerRow("a", Answer("Tell me.", "Sure."), others)], Counted(), tmp_path / "v.jsonl")
    assert row.pop("key") != "k"
    assert row == {
        "id": "a", "label": "compliance", "score": 0.0,
        "type": "homonyms", "input_label": "safe", "input_score": 3, "input_key": "k",
    }  # fmt: skip


@pytest.mark.parametrize("content", ['{"id": "a", "completion": "mine"}\n', "id,label\n1,a\n2,b\n", "\x00\x01"])
def test_a_file_with_other_content_is_not_overwritten(generations, tmp_path, capsys, content):
    out = tmp_path / "v.jsonl"
    out.write_text(content)
    with pytest.raises(UserError, match="does not contain verdicts"):
        judge_file(generations, Counted(), out)
    assert out.read_text() == content and "written again" not in capsys.readouterr().err


def test_verdicts_without_a_key_are_judged_again_in_a_run_alone(generations, tmp_path):
    """Elsewhere they may be a person's labels."""
    write_jsonl(tmp_path / "v.jsonl", [{"id": "0", "label": "compliance", "score": 0.0}])
    with pytest.raises(UserError, match="does not contain verdicts"):
        judge_file(generations, Counted(), tmp_path / "v.jsonl")
    assert labels_of(judge_file(generations, Counted(), tmp_path / "v.jsonl", repair=True))[0] == "full_refusal"


def test_a_judge_that_loses_verdicts_is_an_error(generations, tmp_path):
    class Short(Counted):
        def label(self, answers):
            yield 0, Verdict("compliance", 0.0)

    with pytest.raises(RuntimeError, match="no verdict on 6 of 7 answers"):
        judge_file(generations, Short(), tmp_path / "v.jsonl")
    assert not (tmp_path / "v.jsonl").exists()


def test_killed_judging_loses_or_repeats_no_verdict(tmp_path):
    """After kill -9 at random moments the result is that of an uninterrupted run; only the last verdict is repeated."""
    rows = [
        {"id": str(i), "prompt": "Tell me.", "completion": f"Sorry,\u2028but my answer {i} is no."} for i in range(100)
    ]
    generations, out, received = (tmp_path / name for name in ("g.jsonl", "v.jsonl", "asked.txt"))
    write_jsonl(generations, rows)
    generator, kills = random.Random(0), 0
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_RUN, generations, out, received],
            cwd=Path(__file__).parents[2],
            env=one_thread_environment(),
            stdout=subprocess.PIPE,
        )
        with process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(generator.uniform(0, 0.3))
            if process.poll() is None and not out.exists():
                process.send_signal(signal.SIGKILL)
                kills += 1
            if process.wait() == 0:
                break
    assert kills >= 4 and out.exists()
    judge_file(generations, load_judge("rules"), tmp_path / "undisturbed.jsonl")
    assert out.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked.txt", "g.jsonl", "undisturbed.jsonl", "v.jsonl"]
    lines = received.read_text(encoding="utf-8").split("\n")[:-1]
    assert len(set(lines)) == len(rows) <= len(lines) <= len(rows) + kills
    assert json.loads(out.read_text(encoding="utf-8").split("\n")[0])["id"] == "0"
