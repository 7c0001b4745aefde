"""The data of stage 2 by KTO as tokens: single answers, desirable or not, and their prompts with another's answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from dcr_ds.data.records import LabelledAnswer, LabelledSet
from dcr_ds.errors import UserError
from dcr_ds.models.chat import Encoded, encode_conversation
from dcr_ds.models.limits import row_limit
from dcr_ds.models.rows import encode_rows
from dcr_ds.recipe import AlignSection, KtoSection

BALANCED = (1.0, 4 / 3)  # λ_D n_D / (λ_U n_U) that eq. 8 of arXiv 2402.01306 advises


@dataclass
class Labelled:
    """The answers of one epoch; see `Samples`.

    Attributes:
        desirable: whether each answer is.
        limit: longest row in tokens.
    """

    samples: list[Encoded]
    desirable: list[bool]
    ids: list[str]
    limit: int
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        desirable = sum(self.desirable)
        return {"num_desirable": desirable, "num_undesirable": len(self.samples) - desirable}

    def answers(self, row: int) -> tuple[Encoded, ...]:
        return (self.samples[row],)

    def num_tokens(self, row: int) -> int:
        """Tokens of a conversation, prompt and answer."""
        return len(self.samples[row].ids)

    def mismatched(self, rows: Sequence[int], position: int) -> Encoded:
        """The prompt at a position in the step, with the answer before it; the first prompt gets the last answer.

        A prompt never gets its own answer. A step in which one epoch ends may have a sample twice; its prompts then get
        the answer of the nearest other sample. As in TRL, prompt and answer are cut to `limit` tokens; at least
        one token of the answer is left.
        """
        own, before = rows[position], [*rows[:position][::-1], *rows[:position:-1]]
        prompt, answer = self.samples[own], self.samples[next((row for row in before if row != own), own)]
        ids = prompt.ids[: prompt.prompt_tokens] + answer.ids[answer.prompt_tokens :]
        return Encoded(ids[: self.limit], prompt.prompt_tokens)


def encode_labelled(align: AlignSection, answers: LabelledSet, tokenizer: PreTrainedTokenizerBase) -> Labelled:
    """Render the conversations, and leave out those that are too long.

    Raises:
        UserError: none is short enough, or only answers of one label are; or the chat template does not work.
    """

    def encode(row: LabelledAnswer) -> Encoded:
        return encode_conversation(tokenizer, [*row.context, {"role": "assistant", "content": row.answer}])

    notes: list[str] = []
    limit, named = row_limit(tokenizer, "align.max_length", align.max_length)
    encoded = encode_rows("data.preferences", answers.rows, encode, notes)
    fitting = [(row, sample) for row, sample in encoded if len(sample.ids) <= limit]
    if not fitting:
        raise UserError(f"data.preferences: no conversation has at most {named}; use shorter ones")
    desirable = [row.desirable for row, _ in fitting]
    if len(set(desirable)) == 1:
        label = "undesirable" if desirable[0] else "desirable"
        raise UserError(f"data.preferences: no {label} answer has at most {named}; KTO needs both; use shorter ones")
    if long := len(encoded) - len(fitting):
        notes.append(f"data.preferences: {long} of {len(encoded)} conversations longer than {named} left out")
    notes.append(_balance(sum(desirable), len(desirable) - sum(desirable), align.kto))
    return Labelled([sample for _, sample in fitting], desirable, [row.id for row, _ in fitting], limit, notes)


def _balance(desirable: int, undesirable: int, kto: KtoSection) -> str:
    """The numbers of both labels, and a weight to set if their weighted ratio is not what the paper advises."""
    note = f"preferences: {desirable} desirable + {undesirable} undesirable answers"
    ratio = kto.desirable_weight * desirable / (kto.undesirable_weight * undesirable)
    low, high = BALANCED
    if low <= ratio <= high:
        return note
    field, weight = (
        ("desirable_weight", kto.desirable_weight / ratio)
        if ratio < low
        else ("undesirable_weight", kto.undesirable_weight * ratio)
    )
    return (
        f"{note}, with their weights {ratio:.2f} to 1; the authors of KTO advise {low:.2g} to {high:.2f}: "
        f"--align.kto.{field} {weight:.3g} makes it 1"
    )
