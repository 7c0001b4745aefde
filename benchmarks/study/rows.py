"""The committed results of the study: per arm and seed the figures of each prompt, and what the arm cost.

results/study/<arm>/seed-<n>.csv.gz     a row per set and prompt: refusal log-odds, greedy margin, label of the answer
results/study/<arm>/seed-<n>.json       commit, protocol, device, seconds, tokens, loss on general answers
"""

import csv
import gzip
import io
import math
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, FiniteFloat, ValidationError

from dcr_ds.errors import UserError
from dcr_ds.files import read_object, write_json
from dcr_ds.label_agreement import REFUSAL_LABELS

RESULTS = Path(__file__).resolve().parent.parent / "results" / "study"
DIGITS = 4  # after the point


class Row(NamedTuple):
    """One prompt; log-odds and margin are None for attacked prompts, the label for prompts that were not answered."""

    set: str
    id: str
    log_odds: float | None
    margin: float | None
    label: str | None


class Stage(BaseModel):
    """What the training of a stage cost, as far as it is reported."""

    steps: int
    tokens: int
    wall_seconds: FiniteFloat


class Example(BaseModel):
    """An answer to a harmless prompt."""

    id: str
    prompt: str
    completion: str


class Cost(BaseModel):
    """The fields of a cost that are read."""

    protocol: str
    commit: str
    judge: str
    rows: int
    seconds: FiniteFloat
    general_loss: FiniteFloat
    stages: dict[str, Stage]
    examples: list[Example]


class Place(NamedTuple):
    """Where the results of one arm and seed are."""

    rows: Path
    cost: Path

    @property
    def is_done(self) -> bool:
        return self.rows.is_file() and self.cost.is_file()


def place(arm: str, seed: int, results: Path) -> Place:
    folder = results / arm
    return Place(folder / f"seed-{seed}.csv.gz", folder / f"seed-{seed}.json")


def seeds_done(arm: str, results: Path) -> list[int]:
    """The seeds of an arm whose results are complete."""
    names = (file.stem.removeprefix("seed-") for file in (results / arm).glob("seed-*.json"))
    seeds = sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))
    return [seed for seed in seeds if place(arm, seed, results).is_done]


def write(to: Place, rows: list[Row], cost: dict) -> None:
    """Write the results; the cost, which counts the rows, is last, and marks them complete.

    Equal rows give equal bytes.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows([_cell(value) for value in row] for row in rows)
    to.rows.parent.mkdir(parents=True, exist_ok=True)
    to.rows.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    write_json(to.cost, cost | {"rows": len(rows)})


def read(arm: str, seed: int, results: Path) -> list[Row]:
    """The rows of an arm and seed.

    Raises:
        UserError: the file is missing, damaged or incomplete.
    """
    file = place(arm, seed, results).rows
    try:
        text = gzip.decompress(file.read_bytes()).decode()
        cells = list(csv.reader(io.StringIO(text, newline="")))
        if cells[0] != list(Row._fields):
            raise ValueError(f"columns {cells[0]}")
        if wrong := next((number for number, row in enumerate(cells, 1) if len(row) != len(Row._fields)), None):
            raise ValueError(f"line {wrong} has {len(cells[wrong - 1])} cells, not {len(Row._fields)}")
        rows = [Row(row[0], row[1], _number(row[2]), _number(row[3]), row[4] or None) for row in cells[1:]]
        if len({(row.set, row.id) for row in rows}) < len(rows):
            raise ValueError("a prompt is there twice")
        if unknown := {row.label for row in rows} - {None, *REFUSAL_LABELS}:
            raise ValueError(f"unknown label {min(map(str, unknown))}")
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"{file}: cannot be read ({error}); check it out again, or repeat the arm") from None
    if len(rows) != (count := read_cost(arm, seed, results)["rows"]):
        raise UserError(f"{file}: has {len(rows)} rows, not {count}; check it out again, or repeat the arm")
    return rows


def read_cost(arm: str, seed: int, results: Path) -> dict:
    """What an arm and seed cost.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = place(arm, seed, results).cost
    cost = read_object(file)
    try:
        Cost.model_validate(cost)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: {where}: {first['msg']}; check it out again, or repeat the arm") from None
    return cost


def _cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return f"{value:.{DIGITS}f}" if isinstance(value, float) else value


def _number(text: str) -> float | None:
    if not text:
        return None
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value
