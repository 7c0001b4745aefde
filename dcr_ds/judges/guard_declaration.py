"""Declarations of guard models: the input of a guard, and how its reply becomes a label.

The shipped declarations are the JSON files in guards/; a user's own file has the same fields.
"""

import difflib
import re
from importlib import resources
from typing import Literal

import torch
from pydantic import Field, ValidationError, model_validator

from dcr_ds.errors import UserError
from dcr_ds.files import parse_json
from dcr_ds.judges.base import Verdict
from dcr_ds.judges.labels import LABELS_OF, SCORES, UNPARSED, labelled
from dcr_ds.recipe import GuardJudge, PositiveInt, Section, find_file

SHIPPED = resources.files("dcr_ds.judges") / "guards"
Reply = str | dict[str, float]  # the text of a reply, or the logit of each possible reply


class Reading(Section):
    """How a guard's reply becomes a label."""

    pattern: str | None = Field(
        None, description="regular expression whose group matches the guard's judgement (text only)"
    )
    labels: dict[str, str] = Field(description="the guard's judgement, in lower case for text → our label")

    @model_validator(mode="after")
    def _has_a_group(self) -> "Reading":
        try:
            groups = re.compile(self.pattern or "()").groups
        except re.error as error:
            raise ValueError(f"pattern: not a valid regular expression ({error})") from None
        if groups != 1:
            raise ValueError("pattern: must have one group, around the guard's judgement")
        return self


class Declaration(Section):
    """A guard model: its input, its output, and what it can judge."""

    about: str = Field(description="description and authors")
    source: str | None = Field(description="hub id or folder; null: set by the recipe")
    licence: str = Field(description="of the model")
    format: str | None = Field(
        description="chat, or a text with {prompt} and {response}; null: a file set by the recipe"
    )
    format_from: str = Field("", description="where its authors publish the format")
    output: Literal["text", "first_token", "classifier"] = Field(
        description="generated text, the logits of its first token, or those of a classification head"
    )
    max_new_tokens: PositiveInt = Field(1, description="longest reply")
    max_input_tokens: PositiveInt = Field(description="longest input; the response is truncated, never the rest")
    readings: dict[Literal["refusal", "harm"], Reading] = Field(min_length=1, description="what it can judge")

    @model_validator(mode="after")
    def _text_has_a_pattern(self) -> "Declaration":
        if any((reading.pattern is None) == (self.output == "text") for reading in self.readings.values()):
            raise ValueError("readings: output text requires a pattern; other outputs must not have one")
        return self


def shipped_guards() -> list[str]:
    """Names of the shipped declarations."""
    return sorted(file.name.removesuffix(".json") for file in SHIPPED.iterdir() if file.name.endswith(".json"))


def read_declaration(declared: GuardJudge) -> Declaration:
    """Read the declaration that a recipe names, with the fields that the recipe overrides.

    Raises:
        UserError: unknown or invalid declaration, or a field that the recipe must set is missing.
    """
    where = f"judge {declared.name}"
    declaration = _read_file(declared.guard, where)
    reading = declaration.readings.get(declared.judges)
    if reading is None:
        raise UserError(f"{where}: {declared.guard} judges {' and '.join(declaration.readings)}, not {declared.judges}")
    labels = declared.labels or reading.labels
    if not labels:
        raise UserError(f"{where}: set `labels`: judgement of {declared.guard} → our label")
    if declaration.output == "text":  # what the guard writes is read in lower case
        labels = {word.lower(): label for word, label in labels.items()}
    known = [label for label in LABELS_OF[declared.judges] if label != "unparsed"]
    if wrong := [label for label in labels.values() if label not in known]:
        raise UserError(f"{where}: {wrong[0]!r} is not a label of {declared.judges}; labels: {', '.join(known)}")
    form = _read_format(declared, where) or declaration.format
    if form is None:
        raise UserError(
            f"{where}: the input format of {declared.guard} is not shipped, as its text belongs to its authors. Save "
            f"it in a file with {{prompt}} and {{response}}, and set `format` to that file ({declaration.format_from})"
        )
    if declared.source is None and declaration.source is None:
        raise UserError(f"{where}: set `source`: the folder or hub id of the model")
    readings = {**declaration.readings, declared.judges: reading.model_copy(update={"labels": labels})}
    source = declared.source or declaration.source
    return declaration.model_copy(update={"format": form, "readings": readings, "source": source})


def _read_file(name: str, where: str) -> Declaration:
    shipped = SHIPPED / f"{name}.json"
    file = shipped if shipped.is_file() else find_file(name)
    if file is None:
        similar = difflib.get_close_matches(name, shipped_guards(), n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"shipped: {', '.join(shipped_guards())}"
        raise UserError(f"{where}: unknown guard, and no such file: {name!r}; {hint}")
    try:
        return Declaration.model_validate(parse_json(file.read_text(encoding="utf-8"), unique_keys=True))
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(key) for key in problem["loc"])
        raise UserError(f"{where}: {name}: {field or 'readings'}: {problem['msg']}") from None
    except ValueError as error:  # also raised if the text is not UTF-8
        raise UserError(f"{where}: {name}: not a JSON file ({error})") from None


def _read_format(declared: GuardJudge, where: str) -> str | None:
    """The text of a format file, without the final line break."""
    if declared.format is None:
        return None
    file = find_file(declared.format)
    if file is None:
        raise UserError(
            f"{where}: no such file {declared.format}; `format` must be a text with {{prompt}} and {{response}}"
        )
    text = file.read_text(encoding="utf-8", errors="replace")
    if "{response}" not in text:
        raise UserError(
            f"{where}: {declared.format}: does not contain {{response}}, so the guard would not see the answer"
        )
    return text.removesuffix("\n")


def read(reply: Reply, reading: Reading) -> Verdict:
    """The verdict in a reply: `unparsed` if it is text in which the pattern matches nothing with a label.

    With logits the most likely label counts, and the score is the expectation over the labels.
    """
    if isinstance(reply, str):
        assert reading.pattern is not None  # Declaration demands one where the output is text
        match = re.search(reading.pattern, reply, re.IGNORECASE)
        label = reading.labels.get(match[1].lower()) if match else None
        return labelled(label) if label else UNPARSED
    words = list(reading.labels)
    shares = torch.tensor([reply[word] for word in words]).softmax(0).tolist()
    likeliest = max(range(len(words)), key=shares.__getitem__)
    score = sum(share * SCORES.get(reading.labels[word], 0.0) for word, share in zip(words, shares, strict=True))
    return Verdict(reading.labels[words[likeliest]], round(score, 4))
