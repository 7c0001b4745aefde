"""Pairwise quality: an LLM judge says which of two models answers better, asked in both orders.

The protocol is AlpacaEval's (Li et al. 2023): the win rate of A over B is the mean over prompts of 1 for a win, 0.5 for
a tie and 0 for a loss. Judges prefer a position, so each pair is shown both ways round, and a preference that turns
with the order is a tie. Judges also prefer length. AlpacaEval 2 corrects for it by a regression fitted over the answers
of many models, which two are not; here the mean lengths, and how often the longer answer won, stand beside the rate.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcr_ds.errors import UserError
from dcr_ds.files import hash_of, json_line, read_jsonl, write_jsonl
from dcr_ds.judges.llm import ask, last_label
from dcr_ds.models.endpoint import Completion, Endpoint
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


def read_pairs(a: Path, b: Path) -> list[Pair]:
    """The pairs of two files of generations.

    Raises:
        UserError: a file has no rows, a column is missing, an id is doubled, or the files are not of the same prompts.
    """
    ours, theirs = _read_generations(a), _read_generations(b)
    if only := ours.keys() ^ theirs.keys():
        one = min(only)
        raise UserError(
            f"{a} and {b}: {len(only)} ids are in one of them only, such as {one!r} in {a if one in ours else b}; "
            "compare two models on the same benchmark"
        )
    for key, row in ours.items():
        if row["prompt"] != theirs[key]["prompt"]:
            raise UserError(f"{a} and {b}: the prompt of {key!r} differs; compare two models on the same benchmark")
    return [Pair(key, row["prompt"], row["completion"], theirs[key]["completion"]) for key, row in ours.items()]


def compare(pairs: Sequence[Pair], endpoint: Endpoint, out: Path) -> list[dict]:
    """Judge the pairs both ways round into rows {id, a_first, b_first, winner, key}; rows that `out` has are kept.

    `a_first` and `b_first` are what the judge said with that answer in the first place. Each is written as it comes,
    in a row of its own until the end, so that a killed comparison goes on with what is missing.

    Raises:
        UserError: the endpoint fails; what was judged before is in the file.
    """
    keys = [hash_of([_ask(pair.prompt, pair.a, pair.b), endpoint.model, MAX_TOKENS]) for pair in pairs]
    said: dict[tuple[Any, Any], dict] = {(pair.id, key): {} for pair, key in zip(pairs, keys, strict=True)}
    for row in read_jsonl(out):
        said.setdefault((row.get("id"), row.get("key")), {}).update(row)
    todo = [
        (pair, key, order)
        for pair, key in zip(pairs, keys, strict=True)
        for order in ORDERS
        if order not in said[pair.id, key]
    ]
    write_jsonl(out, [row for row in said.values() if row])  # without a line that was torn
    with out.open("a", encoding="utf-8", newline="\n") as stream:
        for row in _judge(todo, endpoint):
            stream.write(json_line(row))
            stream.flush()
            said[row["id"], row["key"]].update(row)
    rows = [_compared(said[pair.id, key]) for pair, key in zip(pairs, keys, strict=True)]
    write_jsonl(out, rows)
    return rows


def _compared(said: dict) -> dict:
    a_first, b_first = (said[order] for order in ORDERS)
    return {
        "id": said["id"],
        "a_first": a_first,
        "b_first": b_first,
        "winner": winner(a_first, b_first),
        "key": said["key"],
    }


def summarise(pairs: Sequence[Pair], rows: Sequence[dict]) -> dict:
    """Win rate of A over the pairs with a verdict, and what it may owe to length.

    The interval is Wilson's with a tie as half a win; ties vary less than wins and losses, so it errs on the wide side.
    """
    counts = Counter(row["winner"] for row in rows)
    judged = len(rows) - counts["unparsed"]
    longer = [
        row["winner"] == ("a" if len(pair.a) > len(pair.b) else "b")
        for pair, row in zip(pairs, rows, strict=True)
        if row["winner"] in ("a", "b") and len(pair.a) != len(pair.b)
    ]
    turned = sum(row["a_first"] == row["b_first"] != "tie" for row in rows if row["winner"] == "tie")
    return {
        "win_rate": rate(counts["a"] + WORTH["tie"] * counts["tie"], judged),
        "wins": counts["a"],
        "ties": counts["tie"],
        "losses": counts["b"],
        "unparsed": counts["unparsed"],
        "turned_with_the_order": turned,
        "mean_characters": {
            "a": sum(len(pair.a) for pair in pairs) / len(pairs),
            "b": sum(len(pair.b) for pair in pairs) / len(pairs),
        },
        "longer_won": rate(sum(longer), len(longer)),
    }


def _judge(todo: Sequence[tuple[Pair, str, str]], endpoint: Endpoint) -> Iterator[dict]:
    """Yield a row {id, key, <order>} for each pair, key and order as replies come."""
    asked = [
        _ask(pair.prompt, pair.a, pair.b) if order == "a_first" else _ask(pair.prompt, pair.b, pair.a)
        for pair, _, order in todo
    ]
    try:
        for number, reply in endpoint.complete_all(asked, MAX_TOKENS):
            pair, key, order = todo[number]
            yield {"id": pair.id, "key": key, order: _preference(reply)}
    finally:
        print(f"{endpoint.model}: {endpoint.spent}", file=sys.stderr, flush=True)


def winner(a_first: str, b_first: str) -> str:
    """a, b, tie or unparsed, from what was preferred with A in the first place and with B there."""
    if "unparsed" in (a_first, b_first):
        return "unparsed"
    votes = {"first": "a", "second": "b"}.get(a_first, "tie"), {"first": "b", "second": "a"}.get(b_first, "tie")
    return votes[0] if votes[0] == votes[1] else "tie"


def _ask(prompt: str, first: str, second: str) -> list[dict[str, str]]:
    return ask(RUBRIC, PREFERENCES, request=prompt, first=first, second=second)


def _preference(reply: Completion) -> str:
    return last_label(reply, PREFERENCES) or "unparsed"


def _read_generations(file: Path) -> dict[str, dict]:
    if not file.is_file():
        raise UserError(f"{file}: no such file; it wants a generations.jsonl of an evaluation")
    rows: dict[str, dict] = {}
    for number, row in enumerate(read_jsonl(file), 1):
        if missing := [name for name in ("id", "prompt", "completion") if not isinstance(row.get(name), str)]:
            raise UserError(f"{file}: row {number} has no text in {missing[0]!r}; it has {', '.join(row)}")
        if row["id"] in rows:
            raise UserError(f"{file}: row {number}: the id {row['id']!r} is there twice")
        rows[row["id"]] = row
    if not rows:
        raise UserError(f"{file}: holds no row")
    return rows
