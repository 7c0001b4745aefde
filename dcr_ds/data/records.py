"""The records that every data set is made of."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of stage 1, of a probe or of a benchmark.

    `pair` is a key that ties a seemingly toxic prompt to its toxic twin; the twins carry the same key.
    """

    id: str
    prompt: str
    label: str | None = None
    category: str | None = None
    pair: str | None = None


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


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one conversation so far, which ends with a user message: the better and the worse."""

    id: str
    context: tuple[dict[str, str], ...]
    chosen: str
    rejected: str
    category: str | None = None

    @property
    def prompt(self) -> str:
        """The last user message."""
        return self.context[-1]["content"]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts, where they come from, and what was left out on the way (`notes`, with counts)."""

    name: str
    source: str
    rows: list[Prompt]
    sha256: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ConversationSet:
    """Conversations, where they come from, and what was left out on the way (`notes`, with counts)."""

    name: str
    source: str
    rows: list[Conversation]
    sha256: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PreferenceSet:
    """Pairs of answers, where they come from, and what was left out on the way (`notes`, with counts)."""

    name: str
    source: str
    rows: list[Preference]
    sha256: str
    notes: list[str] = field(default_factory=list)


def digest(rows: list[Prompt] | list[Conversation] | list[Preference]) -> str:
    """The SHA-256 of the rows as they are used: after filter, draw and the dropping of repeats, in order."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(json.dumps(dataclasses.asdict(row), sort_keys=True).encode() + b"\n")
    return hasher.hexdigest()


def prompts_of(rows: list[Prompt] | list[Conversation] | list[Preference]) -> list[Prompt]:
    """The prompts of a set of any kind; a conversation's is its last user message."""
    return [row if isinstance(row, Prompt) else Prompt(row.id, row.prompt, category=row.category) for row in rows]
