"""Encode the rows of data sets: an error names the row, and a row that cannot be encoded does not stop a run."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from dcr_ds.errors import UserError
from dcr_ds.models.plain_text import EncodingError

SHOWN = 5  # ids of rows listed in a note


class HasId(Protocol):
    """A row with an id."""

    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=HasId)
Result = TypeVar("Result")


def encode_rows(
    name: str, rows: Sequence[Row], encode: Callable[[Row], Result], notes: list[str]
) -> list[tuple[Row, Result]]:
    """Encode the rows of a data set; those that cannot be encoded are left out and noted.

    Args:
        name: of the data set in the recipe, for messages.
        notes: gets a note with the number and ids of the rows that are left out.

    Raises:
        UserError: naming the data set and the row; no row could be encoded, or the template does not work.
    """
    encoded: list[tuple[Row, Result]] = []
    problems: dict[str, str] = {}
    for row in rows:
        try:
            encoded.append((row, encode(row)))
        except EncodingError as error:
            problems[row.id] = str(error)
        except UserError as error:
            raise UserError(f"{name}, row {row.id}: {error}") from None
    if problems:
        first = next(iter(problems))
        if not encoded:
            raise UserError(f"{name}, row {first}: {problems[first]} (all {len(rows)} rows of the set)")
        shown = ", ".join(list(problems)[:SHOWN]) + (", …" if len(problems) > SHOWN else "")
        notes.append(f"{name}: {len(problems)} of {len(rows)} rows left out ({shown}): {problems[first]}")
    return encoded


def encode_row(name: str, row: Row, encode: Callable[[Row], Result]) -> Result:
    """Encode a row that must not be left out. Raises a UserError that names the data set and the row."""
    try:
        return encode(row)
    except UserError as error:
        raise UserError(f"{name}, row {row.id}: {error}") from None
