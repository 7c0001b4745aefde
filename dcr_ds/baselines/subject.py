"""The prompts that weight edits are computed from: three sets, each split into training and validation prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data.records import Prompt
from dcr_ds.diagnose.log_odds import refusal_log_odds
from dcr_ds.diagnose.openings import Openings
from dcr_ds.errors import UserError
from dcr_ds.models.chat import encode_prompt, encode_within_context
from dcr_ds.models.rows import encode_rows


@dataclass(frozen=True)
class Encoded:
    """Prompts of one set as tokens, with their ids."""

    ids: list[str]
    tokens: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, is_kept: Sequence[bool]) -> "Encoded":
        kept = [index for index, keep in enumerate(is_kept) if keep]
        return Encoded([self.ids[index] for index in kept], [self.tokens[index] for index in kept])


NO_PROMPTS = Encoded([], [])


@dataclass(frozen=True)
class Split:
    """Training and validation prompts of one set."""

    train: Encoded
    validation: Encoded


@dataclass(frozen=True)
class Subject:
    """A loaded model and the prompts it is edited with.

    Attributes:
        prompts: by the names in `ROLES` (prompts.py).
        openings: of the model's refusals, for the refusal score.
        positions: tokens that the chat template writes between a user's message and the answer.
    """

    model: PreTrainedModel
    prompts: dict[str, Split]
    openings: Openings
    positions: int
    batch_size: int

    def scores(self, prompts: Encoded) -> list[float]:
        """Refusal log-odds of prompts, in nats: how likely their answers are to open with a refusal."""
        return [row["log_odds"] for row in self._readings(prompts)]

    def is_refused(self, prompts: Encoded) -> list[bool]:
        """Whether the answer to each prompt opens with a refusal under greedy decoding.

        The sign of the log-odds says less: a small model spreads its probability over many openings, so that most of
        its refusals have log-odds below 0.
        """
        return [row["margin"] > 0 for row in self._readings(prompts)]

    def as_expected(self, name: str) -> Split:
        """The harmless prompts that the model answers, or those of another set that it refuses."""
        split, is_wanted = self.prompts[name], name != "harmless"
        parts = (
            part.where([is_refused is is_wanted for is_refused in self.is_refused(part)])
            for part in (split.train, split.validation)
        )
        return Split(*parts)

    def _readings(self, prompts: Encoded) -> list[dict]:
        return refusal_log_odds(self.model, prompts.ids, prompts.tokens, self.openings, self.batch_size)


def encoded(name: str, rows: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, notes: list[str]) -> Encoded:
    """The prompts of a set as tokens; those that cannot be encoded are left out and noted.

    Raises:
        UserError: naming the set and the row; no prompt could be encoded, one exceeds the model's context, or the
            chat template does not work.
    """
    pairs = encode_rows(name, rows, lambda row: encode_within_context(tokenizer, row.messages), notes)
    return Encoded([row.id for row, _ in pairs], [tokens for _, tokens in pairs])


def positions_after_prompt(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the chat template writes between a user's message and the answer.

    Raises:
        UserError: it writes none.
    """
    first, second = (encode_prompt(tokenizer, text)[::-1] for text in ("a", "b"))
    count = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    if not count:
        raise UserError("the chat template writes nothing after the user's message; choose one with --chat-template")
    return count
