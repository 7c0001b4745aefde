"""Rationale-only: STL whose refusals have no boilerplate sentence ("I'm sorry, but I can't help with that.").

The boilerplate sentence itself is a cause of over-refusal (arXiv 2609.04714). What remains of an answer is its reason
and what it offers instead.
"""

import re
from dataclasses import replace
from pathlib import Path

from dcr_ds.augment.folder import (
    RECIPE,
    REFUSALS,
    baseline_recipe,
    check_alignment,
    check_output,
    write_conversations,
    write_recipe,
    written_at_once,
)
from dcr_ds.data.load import load_data
from dcr_ds.data.records import Conversation
from dcr_ds.errors import UserError
from dcr_ds.judges.rules.families import PATTERNS
from dcr_ds.judges.rules.wording import wording
from dcr_ds.recipe import Recipe

NAME = "rationale-only"
BOILERPLATE = [PATTERNS[name] for name in ("declines", "declines_impersonally", "apologises", "ai_identity")]
CONDOLES = PATTERNS["condoles"]  # "I'm sorry to hear that."
SENTENCE = re.compile(r"\S.*?(?:(?<=[.!?])[\"')\]]*(?=\s|\Z)|(?=\n)|\Z)", re.DOTALL)


def write_rationale_only(recipe: Recipe, out: Path) -> list[str]:
    """Write refusals without boilerplate, and the recipe of an STL run on them; returns notes with the counts.

    Raises:
        UserError: the recipe has no alignment by SFT, the folder exists, no refusal can be changed, or training and
            evaluation data overlap.
    """
    check_alignment(recipe, NAME)
    check_output(out)
    refusals = load_data(recipe).refusals
    assert refusals is not None  # load_data reads them for SFT
    rows, notes = rationale_only(refusals.rows)
    if not any(new is not old for new, old in zip(rows, refusals.rows, strict=True)):
        raise UserError(f"{NAME}: data.refusals ({refusals.source}): no answer was changed: {'; '.join(notes)}")
    with written_at_once(out) as folder:
        write_conversations(folder / REFUSALS, rows)
        load_data(baseline_recipe(recipe, NAME, {"refusals": folder / REFUSALS}))
        written = baseline_recipe(recipe, NAME, {"refusals": out / REFUSALS})
        write_recipe(folder / RECIPE, written, [f"{NAME} of {recipe.name}", *notes])
    return notes


def rationale_only(rows: list[Conversation]) -> tuple[list[Conversation], list[str]]:
    """Refusals without their leading boilerplate, or the same row where nothing can be removed; notes with counts."""
    answers = [without_boilerplate(row.response) for row in rows]
    changed = [
        row if answer in (None, "") else _with_response(row, str(answer))
        for row, answer in zip(rows, answers, strict=True)
    ]
    kept, empty = answers.count(None), answers.count("")
    notes = [f"refusals: boilerplate removed from {len(rows) - kept - empty} of {len(rows)} answers"]
    if kept:
        notes.append(f"refusals: {kept} kept as they are: they do not begin with boilerplate")
    if empty:
        notes.append(f"refusals: {empty} kept as they are: nothing but boilerplate")
    return changed, notes


def without_boilerplate(answer: str) -> str | None:
    """The answer from its first sentence on that neither declines nor apologises.

    Returns:
        None if that is its first sentence, "" if there is none.
    """
    sentences = list(SENTENCE.finditer(answer))
    start = next((sentence.start() for sentence in sentences if not _is_boilerplate(sentence[0])), None)
    if start is None:
        return ""
    return None if start == sentences[0].start() else answer[start:]


def _is_boilerplate(sentence: str) -> bool:
    text = CONDOLES.sub("", wording(sentence).text)
    return any(pattern.search(text) for pattern in BOILERPLATE)


def _with_response(row: Conversation, response: str) -> Conversation:
    return replace(row, messages=(*row.messages[:-1], {**row.messages[-1], "content": response}))
