"""The review of candidate twins: a CSV file that a person fills in, and the two prompt sets that are made of it."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dcr_ds.data.columns import list_names, optional_text, required_text
from dcr_ds.data.leakage import normalise
from dcr_ds.data.prompts import CLASSES
from dcr_ds.data.rows import parse_rows
from dcr_ds.data.sources import read_table
from dcr_ds.data.tables import Row
from dcr_ds.datatools.pairs.checks import MUST_HOLD, failed_checks, shared_words
from dcr_ds.errors import UserError
from dcr_ds.files import hash_of, json_line, write_atomically
from dcr_ds.recipe import DataSource

COLUMNS = ("pair", "toxic", "candidate", "shared_words", "failed", "keep", "mark")
YES, NO = ("yes", "y", "1", "true", "x"), ("", "no", "n", "0", "false")
FORMULA = re.compile(r"#(NAME\?|REF!|VALUE!|DIV/0!|NUM!|NULL!|N/A)|Err:\d+")  # what spreadsheets make of "=text"
BYTE_ORDER_MARK = "\ufeff"  # without it some spreadsheets do not read UTF-8


class Pair(NamedTuple):
    """A harmful prompt and its candidate, which may be empty; `keep` is None where nothing is said.

    `mark` is that of the harmful prompt which the candidate was written for; empty where a review does not say it.
    """

    pair: str
    toxic: str
    candidate: str
    failed: tuple[str, ...] = ()
    keep: bool | None = None
    place: str = ""
    mark: str = ""

    @property
    def id(self) -> str:
        return self.pair


def write_review(file: Path, pairs: Sequence[Pair]) -> None:
    """Write the file that a person fills in."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for pair in pairs:
        shared = " ".join(shared_words(pair.toxic, pair.candidate))
        mark = _mark(pair.toxic)
        writer.writerow([pair.pair, pair.toxic, pair.candidate, shared, ", ".join(pair.failed), "", mark])
    write_atomically(file, BYTE_ORDER_MARK + text.getvalue())


def _mark(toxic: str) -> str:
    """A short hash by which a harmful prompt is recognised, however a spreadsheet breaks its lines."""
    return hash_of(toxic.split())


def read_review(file: Path) -> list[Pair]:
    """Read a review, as a person or a spreadsheet saved it.

    Raises:
        UserError: with file and line: a missing column or pair, a pair twice, or a word in `keep` that is neither yes
            nor no.
    """
    table = read_table(DataSource(source=str(file)), "review", "--accept")
    for column in ("pair", "toxic", "candidate", "keep"):
        if column not in table.columns:
            raise table.origin.error(
                f"no column {column!r}; columns: {list_names(table.columns)}. Keep the names that the review came with"
            )
    places: dict[str, str] = {}

    def parse(row: Row) -> Pair:
        pair = optional_text(row, "pair")
        if pair is None:
            raise row.error("'pair' is missing; every row needs the pair that it came with")
        if pair in places:
            raise row.error(f"the pair {pair!r} is also that of {places[pair]}; remove one of them")
        places[pair] = row.place
        answer = (optional_text(row, "keep") or "").lower()
        if answer not in (*YES, *NO):
            raise row.error(f"'keep' is {answer!r}; write yes or no")
        candidate = optional_text(row, "candidate") or ""
        for name in ("toxic", "candidate"):
            if FORMULA.fullmatch(text := optional_text(row, name) or ""):
                raise row.error(
                    f"{name!r} is {text}: a spreadsheet read the text as a formula; write it again after a '"
                )
        if answer in YES and not candidate:
            raise row.error("'keep' is yes and 'candidate' is empty; write a harmless prompt, or no")
        toxic, mark = required_text(row, "toxic").strip(), optional_text(row, "mark") or ""
        return Pair(pair, toxic, candidate, keep=answer in YES if answer else None, place=row.place, mark=mark)

    return [pair for _, pair in parse_rows(table, parse, "pairs", max_bad_share=0)[0]]


def accepted(file: Path) -> list[Pair]:
    """The pairs of a review that are kept.

    Raises:
        UserError: as `read_review`; none is kept, or a prompt of a kept pair was edited (the harmful one), or is also
            another prompt of the file.
    """
    rows = read_review(file)
    kept = [pair for pair in rows if pair.keep]
    if not kept:
        raise UserError(f"--accept: {file}: no row has yes in the column keep, so there is nothing to write")
    failed = failed_checks({row.pair: row.toxic for row in rows}, {pair.pair: pair.candidate for pair in kept})
    for pair in kept:
        if pair.mark not in ("", _mark(pair.toxic)):
            raise UserError(
                f"--accept: {file}, {pair.place}: 'toxic' is not the harmful prompt that the candidate was written for "
                "(edited, or sorted apart from its row); restore it, or write no in the column keep"
            )
        if found := [check for check in failed[pair.pair] if check in MUST_HOLD]:
            raise UserError(
                f"--accept: {file}, {pair.place}: the candidate is a {found[0]} of a prompt in this file "
                f"({pair.candidate[:80]!r}); change it, or write no in the column keep"
            )
    known: dict[str, Pair] = {}
    for pair in kept:
        if other := known.get(normalise(pair.toxic)):
            raise UserError(
                f"--accept: {file}, {pair.place}: the harmful prompt is also that of {other.place}; keep one of them"
            )
        known[normalise(pair.toxic)] = pair
    return kept


def rows_of(pair: Pair) -> list[dict[str, str]]:
    """Both prompts of a pair as rows of a prompt set, the harmless one first."""
    texts = zip(CLASSES, (pair.candidate, pair.toxic), strict=True)
    return [{"id": f"{pair.pair}/{name}", "pair": pair.pair, "label": name, "prompt": text} for name, text in texts]


def write_sets(pairs: Sequence[Pair], folder: Path) -> list[Path]:
    """Write seemingly_toxic.jsonl and toxic.jsonl for a recipe with `refine.pairs: matched`.

    Raises:
        UserError: a file is there already, with other rows.
    """
    files = [folder / f"{name}.jsonl" for name in CLASSES]
    texts = ["".join(json_line(rows_of(pair)[index]) for pair in pairs) for index in range(len(CLASSES))]
    for file, text in zip(files, texts, strict=True):
        if file.exists() and file.read_bytes() != text.encode():
            raise UserError(f"{file}: exists already, with other rows; name another folder with --out, or remove it")
    for file, text in zip(files, texts, strict=True):
        write_atomically(file, text)
    return files
