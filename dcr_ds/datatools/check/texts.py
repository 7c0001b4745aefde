"""The texts of a set: what is asked in a row, how long the row is, and in which language it is written."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcr_ds.data.records import AnyRecord, Conversation, Prompt
from dcr_ds.judges.rules.languages import other_language

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGLISH = "English or too short to say"


def asked(row: AnyRecord) -> str:
    """The messages of a row before its answer, as one text."""
    if isinstance(row, Prompt):
        messages = row.messages
    else:
        messages = row.messages[:-1] if isinstance(row, Conversation) else row.context
    return "\n".join(message["content"].strip() for message in messages)


def lengths(
    name: str, rows: Sequence[AnyRecord], tokenizer: "PreTrainedTokenizerBase | None", notes: list[str]
) -> dict:
    """Smallest, median, 95th percentile and largest length of the rows: in tokens, without a tokenizer in characters.

    A prompt is measured in its chat template, a conversation whole, and of a preference the longer conversation.

    Args:
        notes: gets a note on rows that cannot be encoded.

    Raises:
        UserError: no row can be encoded.
    """
    if tokenizer is None:
        values = [max(sum(map(len, texts)) for texts in _versions(row)) for row in rows]
    else:
        from dcr_ds.models.rows import encode_rows

        values = [length for _, length in encode_rows(name, rows, lambda row: _num_tokens(tokenizer, row), notes)]
    values.sort()

    def at(share: float) -> int:
        return values[min(len(values) - 1, int(share * len(values)))]

    unit = "characters" if tokenizer is None else "tokens"
    return {"unit": unit, "min": values[0], "median": at(0.5), "p95": at(0.95), "max": values[-1]}


def languages(rows: Sequence[AnyRecord]) -> dict[str, Any]:
    """How many prompts of a prompt set, or answers of another one, are in each language: ISO 639 codes, or ENGLISH."""
    counts = Counter(other_language(_written(row)) or ENGLISH for row in rows)
    of = "prompts" if isinstance(rows[0], Prompt) else "answers"
    return {"of": of, "counts": dict(counts.most_common())}


def _written(row: AnyRecord) -> str:
    if isinstance(row, Prompt):
        return row.prompt
    return row.response if isinstance(row, Conversation) else row.answers[0]


def _versions(row: AnyRecord) -> list[list[str]]:
    """The texts of a row; a preference has two versions."""
    if isinstance(row, Prompt | Conversation):
        return [[message["content"] for message in row.messages]]
    context = [message["content"] for message in row.context]
    return [[*context, answer] for answer in row.answers]


def _num_tokens(tokenizer: "PreTrainedTokenizerBase", row: AnyRecord) -> int:
    from dcr_ds.models.chat import encode_conversation, encode_prompt

    if isinstance(row, Prompt):
        return len(encode_prompt(tokenizer, row.messages))
    if isinstance(row, Conversation):
        return len(encode_conversation(tokenizer, row.messages).ids)
    answers = ({"role": "assistant", "content": text} for text in row.answers)
    return max(len(encode_conversation(tokenizer, [*row.context, answer]).ids) for answer in answers)
