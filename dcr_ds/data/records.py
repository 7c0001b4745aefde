"""The records that data sets consist of."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

SHOWN = 3  # places of rows in a note


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of stage 1, of a probe or of a benchmark.

    `pair` is a key that a seemingly toxic prompt and its toxic twin have in common. `context` holds the messages before
    the prompt: an optional system message, then earlier turns; most prompts have none.
    """

    id: str
    prompt: str
    label: str | None = None
    category: str | None = None
    pair: str | None = None
    context: tuple[dict[str, str], ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        return ()

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """The conversation that a model answers."""
        return (*self.context, {"role": "user", "content": self.prompt})


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation of stage 2: `{"role", "content"}` messages that end with the assistant's answer."""

    id: str
    messages: tuple[dict[str, str], ...]
    category: str | None = None

    @property
    def prompt(self) -> str:
        """The last user message."""
        return next(message["content"] for message in reversed(self.messages) if message["role"] == "user")

    @property
    def response(self) -> str:
        """The assistant's final answer."""
        return self.messages[-1]["content"]

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.response,)


@dataclass(frozen=True, slots=True)
class Preference:
    """A better and a worse answer to one context, which ends with a user message."""

    id: str
    context: tuple[dict[str, str], ...]
    chosen: str
    rejected: str
    category: str | None = None

    @property
    def prompt(self) -> str:
        """The last user message."""
        return self.context[-1]["content"]

    @property
    def answers(self) -> tuple[str, ...]:
        return self.chosen, self.rejected


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer to a context, which ends with a user message, and whether it is desirable."""

    id: str
    context: tuple[dict[str, str], ...]
    answer: str
    desirable: bool
    category: str | None = None

    @property
    def prompt(self) -> str:
        """The last user message."""
        return self.context[-1]["content"]

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.answer,)


AnyRecord = Prompt | Conversation | Preference | LabelledAnswer
Record = TypeVar("Record", bound=AnyRecord)


@dataclass(frozen=True, slots=True)
class Omitted:
    """Rows of a source that are left out for one reason, and the places of the first."""

    count: int
    total: int  # rows of the source
    plural: str  # what the rows are called
    reason: str
    places: tuple[str, ...]

    @classmethod
    def of(cls, places: Sequence[str], total: int, plural: str, reason: str) -> "Omitted":
        return cls(len(places), total, plural, reason, tuple(places[:SHOWN]))

    @property
    def note(self) -> str:
        shown = ", ".join(self.places) + (", …" if self.count > len(self.places) else "")
        return f"{self.count} of {self.total} {self.plural} left out: {self.reason} ({shown})"


@dataclass(frozen=True)
class DataSet(Generic[Record]):
    """The records of a data set, their source and hash, and notes that say how many rows were left out and why.

    `columns` are those that were read, the source's name by ours; `rows_read` counts the rows of the source that
    `where` accepts, `rows_used` those of them behind `rows` (a pair makes two labelled answers), and `left_out` are
    those that cannot be used or are repeated.
    """

    name: str
    source: str
    rows: list[Record]
    sha256: str
    notes: list[str] = field(default_factory=list)
    version: str | None = None  # of the source: SHA-256 of a file, commit of a hub data set
    columns: dict[str, str] = field(default_factory=dict)
    rows_read: int = 0
    rows_used: int = 0
    left_out: list[Omitted] = field(default_factory=list)


PromptSet = DataSet[Prompt]
ConversationSet = DataSet[Conversation]
PreferenceSet = DataSet[Preference]
LabelledSet = DataSet[LabelledAnswer]


def digest(rows: Sequence[AnyRecord]) -> str:
    """SHA-256 of the rows that are used, in order: after filtering, dropping repeats and drawing."""
    hasher = hashlib.sha256()
    for row in rows:
        fields = dataclasses.asdict(row)
        if isinstance(row, Prompt) and not row.context:
            del fields["context"]  # the hash of sets without earlier turns is that of versions that knew none
        hasher.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
    return hasher.hexdigest()


def prompts_of(rows: Sequence[AnyRecord]) -> list[Prompt]:
    """The prompts of a set of any kind; a conversation's prompt is its last user message."""
    return [row if isinstance(row, Prompt) else Prompt(row.id, row.prompt, category=row.category) for row in rows]


def earlier_turns_of(rows: Sequence[AnyRecord]) -> list[Prompt]:
    """The user's messages before the prompts, each as a prompt with the id of its row: they are trained on as well."""
    turns = ((row.id, message) for row in rows for message in _before_prompt(row))
    return [Prompt(id_, message["content"]) for id_, message in turns if message["role"] == "user"]


def _before_prompt(row: AnyRecord) -> tuple[dict[str, str], ...]:
    if isinstance(row, Conversation):
        return row.messages[:-2]
    return row.context if isinstance(row, Prompt) else row.context[:-1]
