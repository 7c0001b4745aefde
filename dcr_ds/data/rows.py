"""Parse the rows of a table: bad rows, and rows left out for a reason, are counted and noted; too many are an error."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dcr_ds.data.records import Omitted
from dcr_ds.data.tables import Row, RowError, Table

T = TypeVar("T")
NUMBER = re.compile(r"\d+")  # in a place, such as "line 7"
FIRST = "0"
MAX_BAD_SHARE = 0.01  # the default
FEW = 5  # bad rows that are always left out, if they are fewer than half of the rows
MAX_NOTES = 5  # on bad rows; the rest are counted


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is left out, although nothing is wrong with it."""

    reason: str


def parse_rows(
    table: Table, parse: Callable[[Row], T | LeftOut], plural: str, max_bad_share: float = MAX_BAD_SHARE
) -> tuple[list[tuple[Row, T]], list[Omitted]]:
    """Parse all rows; returns those that are used, and what is left out, by reason.

    Args:
        parse: raises RowError for a bad row.
        plural: what the rows are called in messages.
        max_bad_share: more bad rows than this share are an error; up to five are left out in any case, unless it is 0.

    Raises:
        UserError: the first bad row, if there are too many.
    """
    records: list[tuple[Row, T]] = []
    left_out: dict[str, list[str]] = {}
    bad = list(table.broken)
    for row in table.rows:
        try:
            record = parse(row)
        except RowError as error:
            bad.append(error)
            continue
        if isinstance(record, LeftOut):
            left_out.setdefault(record.reason, []).append(row.place)
        else:
            records.append((row, record))
    bad.sort(key=lambda bad_row: int((NUMBER.search(bad_row.place) or FIRST)[0]))
    total = len(table.rows) + len(table.broken)
    _refuse_too_many(table, bad, total, max_bad_share)
    reasons: dict[str, list[str]] = {}
    for bad_row in bad:
        reasons.setdefault(bad_row.problem, []).append(bad_row.place)
    omitted = [Omitted.of(places, total, plural, reason) for reason, places in list(reasons.items())[:MAX_NOTES]]
    if others := [place for places in list(reasons.values())[MAX_NOTES:] for place in places]:
        omitted.append(Omitted.of(others, total, plural, "other problems"))
    return records, omitted + [Omitted.of(places, total, plural, reason) for reason, places in left_out.items()]


def _refuse_too_many(table: Table, bad: list[RowError], total: int, max_bad_share: float) -> None:
    allowed = max(int(max_bad_share * total), min(FEW, (total - 1) // 2)) if max_bad_share else 0
    if len(bad) <= allowed:
        return
    if len(bad) == 1:
        raise bad[0]
    advice = "correct or remove them"
    if "." in table.origin.field:  # a data set of a recipe
        advice += f", or allow more with {table.origin.setting('max_bad_share', 'SHARE')}"
    raise table.origin.error(
        f"{bad[0].problem}. In all, {len(bad)} of {total} rows cannot be used, and at most {allowed} are left out; "
        f"{advice}",
        bad[0].place,
    )
