"""The one reader of files of answers and of labels, for `judge`, the evaluation and `compare-quality`.

Files are read like the project's data sets: a bad row is left out and counted, and too many are an error.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcr_ds.data.columns import list_names, missing_column, optional_text, required_text
from dcr_ds.data.messages import as_list, from_json
from dcr_ds.data.rows import MAX_BAD_SHARE, LeftOut, parse_rows
from dcr_ds.data.selection import refuse_doubled_ids, refuse_missing_ids
from dcr_ds.data.sources import read_table
from dcr_ds.data.tables import Origin, Row, Table
from dcr_ds.judges.answer_forms import FORMS, Cells, asked, finish_reason, form_of, parse_answers
from dcr_ds.judges.base import Answer
from dcr_ds.label_agreement import LABELS
from dcr_ds.models.replies import finish_of
from dcr_ds.recipe import DataSource
from dcr_ds.transcript import transcript

ANSWER_COLUMNS = ("prompt", "completion")
COLUMNS = (*ANSWER_COLUMNS, "id", "finish")
LABEL_COLUMNS = ("label", "human_label", "final_label")  # of a judge, of this project's files, of XSTest
PLAIN = "a table of prompts and completions"
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


class AnswerFile(NamedTuple):
    """The answers of a file, the form that they were read as, notes on rows left out, and how many of them are bad."""

    rows: list[AnswerRow]
    form: str
    notes: list[str]
    left_out: int


def read_answers(
    file: str, columns: Mapping[str, str] | None = None, command: str = "judge", max_bad_share: float = MAX_BAD_SHARE
) -> AnswerFile:
    """Read a file with the columns `prompt` and `completion`, and optionally `id` and `finish`, or in another form.

    In generations.jsonl of an evaluation, `context` and `attack` of a row are read, too (`request_of`).

    Without a column of ids, a row's id is its number, counted from 1. A completion may be empty.

    Args:
        columns: our name → the source's name, which may lead into an object (`doc.question`).
        command: the name of the command, for messages.
        max_bad_share: more bad rows than this share are an error; 0 allows none.

    Raises:
        UserError: with file and row: no such file or column, a repeated or missing id, too many bad rows.
    """
    table = read_table(DataSource(source=file), "answers", command, parse_answers)
    return _answers_of(table, columns or {}, max_bad_share)


def read_generations(file: Path) -> AnswerFile:
    """Read the answers of an evaluation, of which each prompt needs one: a bad row is an error."""
    origin = Origin("evaluate", str(file), file.stem)
    return _answers_of(parse_answers(file.read_bytes(), file.name, origin), {}, max_bad_share=0)


def _answers_of(table: Table, columns: Mapping[str, str], max_bad_share: float) -> AnswerFile:
    form = None if set(ANSWER_COLUMNS) <= {*table.columns, *columns} else form_of(table)
    read: Callable[[Row], list[Cells] | LeftOut] = form.reader() if form else _plain_reader(table, columns)
    for name, source in columns.items():
        if source not in table.columns and source.partition(".")[0] not in table.columns:
            raise missing_column(table, source, name)

    def parse(row: Row) -> list[AnswerRow] | LeftOut:
        cells = read(row)
        return cells if isinstance(cells, LeftOut) else [_answer_row(row, item, columns) for item in cells]

    parsed, omitted = parse_rows(table, parse, "answers", max_bad_share)
    notes = [part.note for part in omitted]
    if not parsed:
        raise table.origin.error(f"no usable answers: {'; '.join(notes)}")
    answers = [(row, answer) for row, of_row in parsed for answer in of_row]
    refuse_doubled_ids(answers)
    left_out = len(table.rows) + len(table.broken) - len(parsed)
    return AnswerFile([answer for _, answer in answers], form.name if form else PLAIN, [*table.notes, *notes], left_out)


def _plain_reader(table: Table, columns: Mapping[str, str]) -> Callable[[Row], list[Cells] | LeftOut]:
    if missing := [name for name in ANSWER_COLUMNS if name not in table.columns and name not in columns]:
        raise table.origin.error(
            f"no column {missing[0]!r}; columns: {list_names(table.columns, missing[0])}. Name the right one with "
            f"--columns {' '.join(f'{name}=COLUMN' for name in missing)}. "
            f"Recognised without that: {', '.join(form.name for form in FORMS)}"
        )
    id_column = columns.get("id", "id" if "id" in table.columns else None)
    refuse_missing_ids(table, id_column if id_column in table.columns else None)

    def read(row: Row) -> list[Cells]:
        others = {name: value for name, value in row.cells.items() if name not in ("id", *ANSWER_COLUMNS)}
        prompt = "" if "prompt" in columns else request_of(row.cells, _prompt(row, "prompt"))
        completion = "" if "completion" in columns else required_text(row, "completion", may_be_empty=True)
        return [Cells(optional_text(row, "id"), prompt, completion, finish_reason(row), others)]

    return read


def _answer_row(row: Row, cells: Cells, columns: Mapping[str, str]) -> AnswerRow:
    """The answer with the columns that are mapped in place of those of its form."""
    mapped = Row(row.origin, row.place, row.number, {source: _value(row, source) for source in columns.values()})
    if "prompt" in columns:
        cells = cells._replace(prompt=request_of(row.cells, _prompt(mapped, columns["prompt"])))
    if "completion" in columns:
        cells = cells._replace(completion=required_text(mapped, columns["completion"], may_be_empty=True))
    if "id" in columns:
        cells = cells._replace(id=optional_text(mapped, columns["id"]))
    if "finish" in columns:
        cells = cells._replace(finish=optional_text(mapped, columns["finish"]))
    others = {name: value for name, value in cells.others.items() if name not in columns.values()}
    answer = Answer(cells.prompt, cells.completion, finish_of(cells.finish), _of_attack(row.cells, "sent") or "")
    return AnswerRow(cells.id or str(row.number), answer, others)


def _prompt(row: Row, column: str) -> str:
    """The prompt in a cell: text, or messages with the earlier turns."""
    value = row.cells.get(column)
    if isinstance(as_list(value), list):  # also the JSON of a text file
        return asked(value, column, row)
    return required_text(row, column, may_be_empty=True)


def _value(row: Row, column: str) -> Any:
    """The value of a column; `doc.question` is that of a key in an object, `choices.0` the first item of a list.

    Objects and lists may be the JSON of a text file.
    """
    if column in row.cells:
        return row.cells[column]
    value: Any = row.cells
    for key in column.split("."):
        if isinstance(value, str):
            value = from_json(value)
        if isinstance(value, list) and key.isdecimal():
            value = value[int(key)] if int(key) < len(value) else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def request_of(cells: Mapping[str, Any], prompt: str) -> str:
    """What a judge reads as the request: the prompt with its earlier turns, without what an attack put around it."""
    return transcript(cells.get("context"), _of_attack(cells, "request") or prompt)


def _of_attack(cells: Mapping[str, Any], key: str) -> str | None:
    attack = cells.get("attack")
    value = attack.get(key) if isinstance(attack, dict) else None
    return value if isinstance(value, str) else None


def read_labels(
    file: str, column: str | None = None, id_column: str = "id", answers: Sequence[AnswerRow] | None = None
) -> dict[str, str]:
    """Read id → label from a file of verdicts (`label`) or of human labels (`human_label`, or XSTest's `final_label`).

    Args:
        answers: what is labelled; the rows of a file without ids must be theirs, in their order. None: not checked.

    Raises:
        UserError: as read_answers; an unknown label; or no ids, and rows that are not those of the answers.
    """
    table = read_table(DataSource(source=file), "answers", "judge")
    column = column or _label_column(table)
    if column not in table.columns:
        names = " or ".join(map(repr, LABEL_COLUMNS)) if column is None else repr(column)
        raise table.origin.error(
            f"no column {names}; columns: {list_names(table.columns)}. Give the column of labels this name, in a file "
            "for each annotator"
        )
    ids = next((name for name in (id_column, "id") if name in table.columns), None)
    refuse_missing_ids(table, ids)
    if ids is None and answers is not None:
        _refuse_other_rows(table, answers)

    def parse(row: Row) -> _Label:
        text = required_text(row, column)
        label = _label_in(text)
        if label is None:
            known = ", ".join((*LABELS, *XSTEST_LABELS))
            raise row.error(f"{column!r} contains the unknown label {text!r}; labels: {known}")
        return _Label(optional_text(row, ids) or str(row.number), label)

    labels, _ = parse_rows(table, parse, "labels", max_bad_share=0)
    refuse_doubled_ids(labels, "with several annotators, write the labels of each to a file of their own")
    return {label.id: label.label for _, label in labels}


def _refuse_other_rows(table: Table, answers: Sequence[AnswerRow]) -> None:
    """Raise if rows without ids cannot be those of the answers: other numbers of rows, or other texts."""
    advice = "without ids, labels are matched by row; give both files the column 'id'"
    if len(table.rows) != len(answers):
        raise table.origin.error(f"{len(table.rows)} labels for {len(answers)} answers; {advice}")
    for row, answer in zip(table.rows, answers, strict=True):
        for name in ANSWER_COLUMNS:
            if name in row.cells and row.cells[name] != getattr(answer.answer, name):
                raise row.error(f"{name!r} is not that of answer {answer.id}; {advice}")


class _Label(NamedTuple):
    id: str
    label: str


def _label_in(cell: Any) -> str | None:
    """The label in a cell; people write it with capitals, spaces or hyphens."""
    name = re.sub(r"[\s-]+", "_", cell.strip().lower()) if isinstance(cell, str) else ""
    name = XSTEST_LABELS.get(name, name)
    return name if name in LABELS else None


def _label_column(table: Table) -> str | None:
    """The column of labels, which holds only known ones: `label` may also be that of a data set."""
    present = [name for name in LABEL_COLUMNS if name in table.columns]
    good = [name for name in present if all(_label_in(row.cells.get(name)) for row in table.rows)]
    if len(good) > 1 and "key" not in table.columns:  # verdicts have a key, and copies of other columns
        raise table.origin.error(f"the columns {' and '.join(good)} are both labels; leave the ones to be compared")
    return next(iter([*good, *present]), None)
