"""Prompts that occur more than once, in one set or in two: in the same words, or but for case and punctuation."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from dcr_ds.data.leakage import normalise
from dcr_ds.data.reader import REPEATED
from dcr_ds.data.records import AnyRecord, DataSet, LabelledAnswer
from dcr_ds.datatools.check.texts import asked

SHOWN = 3  # examples


def within(data_set: DataSet) -> dict[str, Any]:
    """Rows that repeat an earlier row of their set.

    `exact` rows repeat all of an earlier row and are left out by the reader. `normalised` rows ask the same as an
    earlier row but for case, space and punctuation; they are used. A labelled answer repeats another one of the same
    words alone: several answers to a prompt are what its data is for. `examples` are their ids and those of the
    earlier rows.
    """
    exact = sum(part.count for part in data_set.left_out if part.reason == REPEATED)
    first: dict[str, str] = {}
    repeats = []
    for row in data_set.rows:
        key = normalise(asked(row) + (f"\n{row.answer}" if isinstance(row, LabelledAnswer) else ""))
        if key in first:
            repeats.append([first[key], row.id])
        first.setdefault(key, row.id)
    return {"exact": exact, "normalised": len(repeats), "examples": repeats[:SHOWN]}


def between(sets: Mapping[str, DataSet]) -> list[dict[str, Any]]:
    """For each two sets with common prompts: how many of the second are also in the first.

    `exact` have the same words, `normalised` differ in case, space or punctuation alone.
    """
    found = [_common(names, sets[names[0]].rows, sets[names[1]].rows) for names in combinations(sets, 2)]
    return [common for common in found if common["exact"] or common["normalised"]]


def _common(names: tuple[str, str], first: Sequence[AnyRecord], second: Sequence[AnyRecord]) -> dict[str, Any]:
    texts = {asked(row) for row in first}
    ids = {normalise(asked(row)): row.id for row in first}
    common = [(ids[key], row) for row in second if (key := normalise(asked(row))) in ids]
    exact = sum(asked(row) in texts for _, row in common)
    examples = [[known, row.id] for known, row in common[:SHOWN]]
    return {"sets": list(names), "exact": exact, "normalised": len(common) - exact, "examples": examples}
