"""Judge files of answers: each answer is judged once, however often a run is killed or repeated.

A verdict row is {id, label, score, …, key}; its key is a hash of everything the verdict depends on: the judge's name
and version, prompt, completion and finish. Verdicts are appended to <out>.unfinished as they arrive; at the end all
rows are written atomically in the order of the answers. Both files are the cache of the next run.
"""

from collections.abc import Sequence
from pathlib import Path
from types import NoneType

from dcr_ds.files import hash_of, json_line, read_whole_rows, refuse_other_rows, write_jsonl
from dcr_ds.judges.base import Answer, Judge, Verdict
from dcr_ds.judges.rows import AnswerRow, read_generations
from dcr_ds.progress import heartbeat

VERDICT_FIELDS = ("id", "label", "score", "key")
FIELDS = {"key": str, "label": str, "score": (int, float, NoneType)}  # what is read again


def judge_file(generations: Path, judge: Judge, out: Path, repair: bool = False) -> list[dict]:
    """Judge a file of generations; returns the written rows {id, label, score, key}, in the order of the file.

    Judges read a prompt with its earlier turns, and without what an attack put around it.

    Args:
        repair: write a file at `out` again that holds no verdicts, as those of a run may after a crash.
    """
    rows = [row._replace(others={}) for row in read_generations(generations).rows]
    return judge_rows(rows, judge, out, repair)


def judge_rows(rows: Sequence[AnswerRow], judge: Judge, out: Path, repair: bool = False) -> list[dict]:
    """Judge the answers that are not judged yet, and write one verdict per row with the row's other columns.

    A column with the name of a field of verdicts is written as input_<name>.

    Raises:
        UserError: the file at `out` does not contain verdicts (without `repair`); or what the judge raises (its
            verdicts are kept).
    """
    if not repair:
        refuse_other_rows(out, ("key",), "verdicts")
    unfinished = out.with_name(out.name + ".unfinished")
    known = {
        row["key"]: Verdict(row["label"], row["score"])
        for file in (out, unfinished)
        for row in read_whole_rows(file, FIELDS)
    }
    answers = {_key(judge, row.answer): row.answer for row in rows}  # equal answers are judged once
    reused = {key: known[key] for key in answers if key in known}
    missing = {key: answer for key, answer in answers.items() if key not in known}
    judged = reused | (_judge_missing(missing, reused, judge, unfinished) if missing else {})
    verdicts = [_verdict_row(row, key := _key(judge, row.answer), judged[key]) for row in rows]
    write_jsonl(out, verdicts)
    unfinished.unlink(missing_ok=True)
    return verdicts


def _key(judge: Judge, answer: Answer) -> str:
    return hash_of([judge.name, judge.version, *answer])


def _judge_missing(
    missing: dict[str, Answer], reused: dict[str, Verdict], judge: Judge, unfinished: Path
) -> dict[str, Verdict]:
    """The verdicts on the missing answers, each appended to the unfinished file as it arrives."""
    # The file is rewritten first: nothing can be appended after a line that was torn by a kill.
    write_jsonl(unfinished, [{"key": key, **verdict._asdict()} for key, verdict in reused.items()])
    judged, keys = {}, list(missing)
    with unfinished.open("a", encoding="utf-8", newline="\n") as out:
        for index, verdict in judge.label(list(missing.values())):
            key = keys[index]
            out.write(json_line({"key": key, **verdict._asdict()}))
            out.flush()
            judged[key] = verdict
            heartbeat(f"evaluate, judge {judge.name}, {len(judged)} of {len(missing)} verdicts")
    if lost := len(missing) - len(judged):  # a missing verdict must never change a score silently
        raise RuntimeError(f"{judge.name}: no verdict on {lost} of {len(missing)} answers")
    return judged


def _verdict_row(row: AnswerRow, key: str, verdict: Verdict) -> dict:
    others = {f"input_{name}" if name in VERDICT_FIELDS else name: value for name, value in row.others.items()}
    return {"id": row.id, **verdict._asdict(), **others, "key": key}
