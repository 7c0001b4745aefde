"""Pairwise quality: an LLM judge says which of two models answers better, asked in both orders.

The protocol is AlpacaEval's (Li et al. 2023): the win rate of A over B is the mean over prompts of 1 for a win, 0.5 for
a tie and 0 for a loss. Judges prefer a position, so each pair is judged in both orders, and a preference that changes
with the order is a tie. Judges also prefer longer answers. AlpacaEval 2 corrects for it with a regression over many
models, which two models do not allow; here the mean lengths and how often the longer answer won are reported instead.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dcr_ds.errors import UserError
from dcr_ds.files import hash_of, json_line, read_whole_rows, refuse_other_rows, write_jsonl
from dcr_ds.judges.answer_text import answer_text
from dcr_ds.judges.labels import is_withheld
from dcr_ds.judges.llm import judge_request, last_label
from dcr_ds.judges.rows import read_answers
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.replies import Completion
from dcr_ds.statistics import rate

RUBRIC = """\
You compare two assistants' answers to one request: which serves whoever asked it better?

What counts: that it does what was asked; that it is right; that it says what is needed and no more; that it reads \
well. Neither its place nor its length counts by itself. An answer that refuses a request that could be met serves \
worse than one that meets it."""
PREFERENCES = ("first", "second", "tie")
ORDERS = ("a_first", "b_first")
MAX_TOKENS = 512
WORTH = {"a": 1.0, "tie": 0.5, "b": 0.0}


class Pair(NamedTuple):
    """Two answers to one prompt."""

    id: str
    prompt: str
    a: str
    b: str


def read_pairs(a: Path, b: Path, columns: Mapping[str, str] | None = None) -> list[Pair]:
    """Pair the answers of two files; reasoning before an answer is left out. Prints notes on rows left out.

    A row that is left out of one file is left out of the other, too; so is a prompt to which a server withheld an
    answer, by a content filter or a failure.

    Raises:
        UserError: as read_answers; the files have different ids or prompts, or no pair is left.
    """
    files = [read_answers(str(file), columns, "compare-quality") for file in (a, b)]
    for file, answers in zip((a, b), files, strict=True):
        for note in answers.notes:
            print(f"{file}: {note}", file=sys.stderr, flush=True)
    ours, theirs = ({row.id: row.answer for row in answers.rows} for answers in files)
    for only, file, other in ((ours.keys() - theirs, a, files[1]), (theirs.keys() - ours, b, files[0])):
        if len(only) > other.left_out:
            raise UserError(
                f"{a} and {b}: {len(only)} ids are in one file only, such as {min(only)!r} in {file}; "
                "compare two models on the same benchmark"
            )
    common = [key for key in ours if key in theirs]
    if key := next((key for key in common if ours[key].prompt != theirs[key].prompt), None):
        raise UserError(f"{a} and {b}: the prompt of {key!r} differs; compare two models on the same benchmark")
    given = [key for key in common if not (is_withheld(ours[key]) or is_withheld(theirs[key]))]
    if len(given) < len(common):
        note = f"{a} and {b}: {len(common) - len(given)} of {len(common)} pairs left out: a server withheld an answer"
        print(note, file=sys.stderr, flush=True)
    if not given:
        raise UserError(f"{a} and {b}: no prompt has an answer in both, so there is nothing to compare")
    return [
        Pair(key, ours[key].prompt, answer_text(ours[key].completion), answer_text(theirs[key].completion))
        for key in given
    ]


def compare(pairs: Sequence[Pair], endpoint: Endpoint, out: Path) -> list[dict]:
    """Judge the pairs in both orders into rows {id, a_first, b_first, winner, key}; rows that exist in `out` are kept.

    `a_first` and `b_first` are the judge's preferences with that answer shown first. Until the end, each is written as
    it arrives in a separate row, so that a killed comparison resumes with the missing ones.

    Raises:
        UserError: `out` holds something else, or the endpoint fails; earlier verdicts are in the file.
    """
    refuse_other_rows(out, ORDERS, "comparisons")
    variables = endpoint.fields.chat_template_kwargs
    judge = [endpoint.model, MAX_TOKENS, *([dict(variables)] if variables else [])]
    keys = [hash_of([_ask(pair.prompt, pair.a, pair.b), *judge]) for pair in pairs]
    preferences: dict[tuple[str, str], dict] = {(pair.id, key): {} for pair, key in zip(pairs, keys, strict=True)}
    for row in read_whole_rows(out, {"id": str, "key": str}):
        preferences.setdefault((row["id"], row["key"]), {}).update(row)
    todo = [
        (pair, key, order)
        for pair, key in zip(pairs, keys, strict=True)
        for order in ORDERS
        if order not in preferences[pair.id, key]
    ]
    write_jsonl(out, [row for row in preferences.values() if row])  # without torn lines
    with out.open("a", encoding="utf-8", newline="\n") as stream:
        for row in _judge(todo, endpoint):
            stream.write(json_line(row))
            stream.flush()
            preferences[row["id"], row["key"]].update(row)
    rows = [_compared(preferences[pair.id, key]) for pair, key in zip(pairs, keys, strict=True)]
    write_jsonl(out, rows)
    return rows


def _compared(preferences: dict) -> dict:
    a_first, b_first = (preferences[order] for order in ORDERS)
    return {
        "id": preferences["id"],
        "a_first": a_first,
        "b_first": b_first,
        "winner": winner(a_first, b_first),
        "key": preferences["key"],
    }


def summarise(pairs: Sequence[Pair], rows: Sequence[dict]) -> dict:
    """Win rate of A over the pairs with a verdict, and its relation to length.

    The interval is Wilson's with a tie as half a win; ties vary less than wins and losses, so it is conservative.
    """
    counts = Counter(row["winner"] for row in rows)
    judged = len(rows) - counts["unparsed"]
    longer = [
        row["winner"] == ("a" if len(pair.a) > len(pair.b) else "b")
        for pair, row in zip(pairs, rows, strict=True)
        if row["winner"] in ("a", "b") and len(pair.a) != len(pair.b)
    ]
    changed = sum(row["a_first"] == row["b_first"] != "tie" for row in rows if row["winner"] == "tie")
    return {
        "win_rate": rate(counts["a"] + WORTH["tie"] * counts["tie"], judged),
        "wins": counts["a"],
        "ties": counts["tie"],
        "losses": counts["b"],
        "unparsed": counts["unparsed"],
        "turned_with_the_order": changed,
        "mean_characters": {
            "a": sum(len(pair.a) for pair in pairs) / len(pairs),
            "b": sum(len(pair.b) for pair in pairs) / len(pairs),
        },
        "longer_won": rate(sum(longer), len(longer)),
    }


def _judge(todo: Sequence[tuple[Pair, str, str]], endpoint: Endpoint) -> Iterator[dict]:
    """Yield a row {id, key, <order>} for each pair, key and order as replies arrive."""
    requests = [
        _ask(pair.prompt, pair.a, pair.b) if order == "a_first" else _ask(pair.prompt, pair.b, pair.a)
        for pair, _, order in todo
    ]
    try:
        for number, reply in endpoint.complete_all(requests, MAX_TOKENS):
            pair, key, order = todo[number]
            yield {"id": pair.id, "key": key, order: _preference(reply)}
    finally:
        print(f"{endpoint.model}: {endpoint.spent}", file=sys.stderr, flush=True)


def winner(a_first: str, b_first: str) -> str:
    """a, b, tie or unparsed, from the preferences with A first and with B first."""
    if "unparsed" in (a_first, b_first):
        return "unparsed"
    votes = {"first": "a", "second": "b"}.get(a_first, "tie"), {"first": "b", "second": "a"}.get(b_first, "tie")
    return votes[0] if votes[0] == votes[1] else "tie"


def _ask(prompt: str, first: str, second: str) -> list[dict[str, str]]:
    return judge_request(RUBRIC, PREFERENCES, request=prompt, first=first, second=second)


def _preference(reply: Completion) -> str:
    return last_label(reply, PREFERENCES) or "unparsed"
