"""The data of stage 2 by SFT as tokens: general conversations and safe refusals in a given ratio."""

from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from dcr_ds.data.load import RunData
from dcr_ds.data.records import Conversation
from dcr_ds.data.sampler import draw
from dcr_ds.errors import UserError
from dcr_ds.models.chat import Encoded, encode_conversation
from dcr_ds.models.limits import row_limit
from dcr_ds.models.rows import encode_rows
from dcr_ds.recipe import AlignSection


@dataclass
class Mix:
    """The samples of one epoch; see `Samples`."""

    samples: list[Encoded]
    ids: list[str]
    num_refusals: int
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        return {"num_refusals": self.num_refusals, "num_general": len(self.samples) - self.num_refusals}

    def answers(self, row: int) -> tuple[Encoded, ...]:
        return (self.samples[row],)

    def num_tokens(self, row: int) -> int:
        """Tokens of a conversation, prompt and answer."""
        return len(self.samples[row].ids)


def encode_mix(align: AlignSection, data: RunData, tokenizer: PreTrainedTokenizerBase, seed: int) -> Mix:
    """Render both sets, leave out conversations that are too long, and sample the larger set down to `safe_ratio`.

    Long conversations are not truncated, since the model would learn answers without an end.

    Raises:
        UserError: no conversation of a set is short enough, or the chat template does not work.
    """
    assert data.general is not None and data.refusals is not None  # load_data reads them for SFT
    notes: list[str] = []
    general = _encode("general", data.general.rows, align.max_length, tokenizer, notes)
    refusals = _encode("refusals", data.refusals.rows, align.max_length, tokenizer, notes)
    if align.safe_ratio != "auto":
        ratio = align.safe_ratio
        num_refusals = min(len(refusals), max(1, round(len(general) * ratio / (1 - ratio))))
        num_general = min(len(general), max(1, round(num_refusals * (1 - ratio) / ratio)))
        refusals = _draw(refusals, num_refusals, f"{seed}/refusals")
        general = _draw(general, num_general, f"{seed}/general")
    share = len(refusals) / (len(refusals) + len(general))
    notes.append(f"mix: {len(general)} general + {len(refusals)} refusals, {share:.1%} refusals")
    ids, samples = zip(*general, *refusals, strict=True)
    if align.loss_on == "all":  # nothing predicts the first token
        samples = tuple(replace(sample, prompt_tokens=1) for sample in samples)
    return Mix(list(samples), list(ids), len(refusals), notes)


def _encode(
    name: str, rows: list[Conversation], max_length: int, tokenizer: PreTrainedTokenizerBase, notes: list[str]
) -> list[tuple[str, Encoded]]:
    limit, named = row_limit(tokenizer, "align.max_length", max_length)
    encoded = encode_rows(f"data.{name}", rows, lambda row: encode_conversation(tokenizer, row.messages), notes)
    fitting = [(row.id, sample) for row, sample in encoded if len(sample.ids) <= limit]
    if long := len(encoded) - len(fitting):
        notes.append(f"data.{name}: {long} of {len(encoded)} conversations longer than {named} left out")
    if not fitting:
        raise UserError(f"data.{name}: no conversation has at most {named}; use shorter ones")
    return fitting


def _draw(rows: list, count: int, seed: str) -> list:
    return [rows[index] for index in sorted(draw(seed, len(rows), 0, count))]
