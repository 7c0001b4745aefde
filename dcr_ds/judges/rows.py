"""Read files of answers and of labels: csv, json, jsonl or parquet, like the project's data sets."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dcr_ds.data.columns import list_names, optional_text, required_text
from dcr_ds.data.selection import refuse_missing_ids
from dcr_ds.data.sources import read_table
from dcr_ds.data.tables import Table
from dcr_ds.judges.base import Answer
from dcr_ds.label_agreement import LABELS
from dcr_ds.recipe import DataSource
from dcr_ds.transcript import transcript

ANSWER_COLUMNS = ("prompt", "completion")
LABEL_COLUMNS = ("label", "human_label")
XSTEST_LABELS = {
    "1_full_compliance": "compliance",
    "2_full_refusal": "full_refusal",
    "3_partial_refusal": "partial_refusal",
}


class AnswerRow(NamedTuple):
    """An answer with its id, and the other columns of its row unchanged."""

    id: str
    answer: Answer
    others: dict[str, Any]


def read_answers(file: str) -> list[AnswerRow]:
    """Read a file with the columns `prompt` and `completion`, and optionally `id` and `finish`.

    In generations.jsonl of an evaluation, `context` and `attack` of a row are read, too (`request_of`).

    Without a column of ids, a row's id is its number, counted from 1. A completion may be empty.

    Raises:
        UserError: with file and row: no such file or column, a repeated or missing id, a cell that is not text.
    """
    table = _read(file, ANSWER_COLUMNS)
    rows = []
    for row, row_id in zip(table.rows, _ids(table), strict=True):
        prompt, completion = (required_text(row, name, may_be_empty=True) for name in ANSWER_COLUMNS)
        finish = optional_text(row, "finish")
        prompt = request_of(row.cells, prompt)
        others = {name: value for name, value in row.cells.items() if name not in ("id", *ANSWER_COLUMNS)}
        rows.append(AnswerRow(row_id, Answer(prompt, completion, finish), others))
    return rows


def request_of(cells: Mapping[str, Any], prompt: str) -> str:
    """What a judge reads as the request: the prompt with its earlier turns, without what an attack put around it."""
    attack = cells.get("attack")
    if isinstance(attack, dict) and isinstance(attack.get("request"), str):
        prompt = attack["request"]
    return transcript(cells.get("context"), prompt)


def read_labels(file: str, column: str | None = None) -> dict[str, str]:
    """Read id → label from a file of verdicts (`label`) or of human labels (`human_label`, also with XSTest's names).

    Raises:
        UserError: as read_answers, or an unknown label.
    """
    table = _read(file, ())
    column = column or next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if column not in table.columns:
        names = " or ".join(map(repr, LABEL_COLUMNS)) if column is None else repr(column)
        raise table.origin.error(f"no column {names}; columns: {list_names(table.columns)}")
    labels = {}
    for row, row_id in zip(table.rows, _ids(table), strict=True):
        text = required_text(row, column)
        labels[row_id] = XSTEST_LABELS.get(text, text)
        if labels[row_id] not in LABELS:
            known = ", ".join((*LABELS, *XSTEST_LABELS))
            raise row.error(f"{column!r} contains the unknown label {text!r}; labels: {known}")
    return labels


def _read(file: str, needed: tuple[str, ...]) -> Table:
    table = read_table(DataSource(source=file), "answers", "judge")
    for name in needed:
        if name not in table.columns:
            raise table.origin.error(f"no column {name!r}; columns: {list_names(table.columns)}. Rename the right one")
    return table


def _ids(table: Table) -> list[str]:
    """The ids of all rows; a repeated id is an error, as ids identify verdicts."""
    column = "id" if "id" in table.columns else None
    refuse_missing_ids(table, column)
    places: dict[str, str] = {}
    for row in table.rows:
        row_id = optional_text(row, column) or str(row.number)
        if row_id in places:
            raise row.error(f"the id {row_id!r} is also that of {places[row_id]}; ids must be unique")
        places[row_id] = row.place
    return list(places)
