"""The data of stage 2 by DPO, ORPO and SimPO as tokens: pairs of a chosen and a rejected answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from dcr_ds.data.records import Preference, PreferenceSet
from dcr_ds.errors import UserError
from dcr_ds.models.chat import Encoded, encode_conversation
from dcr_ds.models.limits import row_limit
from dcr_ds.models.rows import encode_rows


@dataclass(frozen=True, slots=True)
class Pair:
    """Two encoded conversations with the same prompt."""

    chosen: Encoded
    rejected: Encoded

    @property
    def both(self) -> tuple[Encoded, Encoded]:
        return self.chosen, self.rejected

    @property
    def num_tokens(self) -> int:
        return len(self.chosen.ids) + len(self.rejected.ids)


@dataclass
class Pairs:
    """The pairs of one epoch; see `Samples`."""

    samples: list[Pair]
    ids: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        return {"num_pairs": len(self.samples)}

    def answers(self, row: int) -> tuple[Encoded, ...]:
        """The chosen answer, then the rejected one."""
        return self.samples[row].both

    def lengths(self, rows: Sequence[int]) -> torch.Tensor:
        """Supervised tokens of both answers of each pair [B, 2]."""
        return torch.tensor([[answer.num_supervised for answer in self.samples[row].both] for row in rows])

    def num_tokens(self, row: int) -> int:
        """Tokens of a pair: both answers, each with the prompt."""
        return self.samples[row].num_tokens


def encode_pairs(preferences: PreferenceSet, max_length: int, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Render both conversations of each pair, and leave out pairs in which one is too long.

    Raises:
        UserError: no pair is short enough, or the chat template does not work.
    """

    def encode(row: Preference) -> Pair:
        answers = ({"role": "assistant", "content": text} for text in (row.chosen, row.rejected))
        return Pair(*(encode_conversation(tokenizer, [*row.context, answer]) for answer in answers))

    notes: list[str] = []
    limit, named = row_limit(tokenizer, "align.max_length", max_length)
    encoded = encode_rows("data.preferences", preferences.rows, encode, notes)
    fitting = [(row, pair) for row, pair in encoded if max(len(answer.ids) for answer in pair.both) <= limit]
    if not fitting:
        raise UserError(f"data.preferences: no pair has at most {named}; use shorter ones")
    notes.append(f"preferences: {len(fitting)} pairs")
    if long := len(encoded) - len(fitting):
        notes.append(f"data.preferences: {long} of {len(encoded)} pairs longer than {named} left out")
    return Pairs([pair for _, pair in fitting], [row.id for row, _ in fitting], notes)
