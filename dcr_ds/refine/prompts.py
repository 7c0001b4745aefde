"""The prompts of stage 1 as tokens: training rows, held-out rows, and the general conversations of the retain term."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from dcr_ds.data.load import RunData
from dcr_ds.data.records import Conversation, Prompt
from dcr_ds.data.sampler import ContrastiveSampler, draw
from dcr_ds.data.splitting import HeldOutSplit, split_held_out
from dcr_ds.errors import UserError
from dcr_ds.models.batches import num_shared_tokens
from dcr_ds.models.chat import encode_conversation, encode_prompt
from dcr_ds.models.limits import row_limit
from dcr_ds.models.rows import encode_rows
from dcr_ds.recipe import Recipe

DRIFT_ROWS = 16  # held-out general conversations whose drift is measured
MEASURED_PROMPTS = 256  # measured held-out prompts per set, at most: a measurement should cost less than a step

PromptTokens = dict[tuple[int, str], list[int]]  # token ids by (label, id) of a prompt


class HeldOut(NamedTuple):
    """A held-out prompt: tokens, label, and the number of its pair (unique for a prompt without a twin)."""

    ids: list[int]
    label: int
    pair: int


@dataclass
class RefinePrompts:
    """The rendered data of stage 1.

    The first `num_shared` token ids are the same in all prompts; `general` and `held_out_general` are token rows of
    whole conversations, prompt and answer.
    """

    sampler: ContrastiveSampler
    tokens: PromptTokens
    num_shared: int
    held_out: list[HeldOut]
    general: list[list[int]]
    held_out_general: list[list[int]]
    notes: list[str] = field(default_factory=list)


def encode_refine_prompts(recipe: Recipe, data: RunData, tokenizer: PreTrainedTokenizerBase) -> RefinePrompts:
    """Render the sets of stage 1, filter them by length and split them.

    Raises:
        UserError: too few rows of a set are left to train on or to hold out.
    """
    notes: list[str] = []
    tokens, split = split_prompts(recipe, data, tokenizer, notes)
    sampler = ContrastiveSampler(
        split.seemingly_toxic, split.toxic, recipe.refine.global_batch, recipe.refine.pairs, recipe.seed
    )
    held_out_sets = (split.held_out_seemingly_toxic, split.held_out_toxic)
    labelled = [(row, label) for label, rows in enumerate(held_out_sets) for row in rows]
    numbers: dict[str | None, int] = {}
    held_out = [
        HeldOut(tokens[label, row.id], label, numbers.setdefault(row.pair, len(numbers)) if row.pair else -index - 1)
        for index, (row, label) in enumerate(labelled)
    ]
    if (measured := limit_held_out(held_out, MEASURED_PROMPTS, recipe.seed)) is not held_out:
        notes.append(f"{len(measured)} of {len(held_out)} held-out prompts are measured")
    assert data.general is not None  # load_data reads it with the stage
    general, held_out_general = _general_rows(recipe, data.general.rows, tokenizer, notes)
    return RefinePrompts(
        sampler=sampler,
        tokens=tokens,
        num_shared=num_shared_tokens(list(tokens.values())),
        held_out=measured,
        general=general,
        held_out_general=held_out_general,
        notes=notes + sampler.notes,
    )


def split_prompts(
    recipe: Recipe, data: RunData, tokenizer: PreTrainedTokenizerBase, notes: list[str]
) -> tuple[PromptTokens, HeldOutSplit]:
    """The tokens of the prompts that can be encoded and are short enough, and the split of their rows.

    Args:
        notes: gets what is left out.

    Raises:
        UserError: no row of a set can be encoded, or too few are left to train on or to hold out.
    """
    assert data.seemingly_toxic is not None and data.toxic is not None  # load_data reads them with the stage
    limit, named = row_limit(tokenizer, "refine.max_length", recipe.refine.max_length)
    tokens: PromptTokens = {}

    def fitting(label: int, name: str, rows: list[Prompt]) -> list[Prompt]:
        encoded = encode_rows(name, rows, lambda row: encode_prompt(tokenizer, row.messages), notes)
        short = [(row, ids) for row, ids in encoded if len(ids) <= limit]
        if long := len(encoded) - len(short):
            notes.append(f"{name}: {long} prompts longer than {named} left out")
        tokens.update({(label, row.id): ids for row, ids in short})
        return [row for row, _ in short]

    seemingly_toxic = fitting(0, "data.seemingly_toxic", data.seemingly_toxic.rows)
    toxic = fitting(1, "data.toxic", data.toxic.rows)
    return tokens, split_held_out(seemingly_toxic, toxic, recipe.data.held_out, recipe.seed)


def _general_rows(
    recipe: Recipe, rows: list[Conversation], tokenizer: PreTrainedTokenizerBase, notes: list[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """The token rows of the retain term, and those whose drift is measured."""
    limit, named = row_limit(tokenizer, "refine.max_length", recipe.refine.max_length)
    encoded = encode_rows("data.general", rows, lambda row: encode_conversation(tokenizer, row.messages).ids, notes)
    fitting = [ids for _, ids in encoded if len(ids) <= limit]
    if long := len(encoded) - len(fitting):
        notes.append(f"data.general: {long} conversations longer than {named} left out of the retain term")
    order = draw(f"{recipe.seed}/held-out general", len(fitting), 0, len(fitting)) if fitting else []
    num_held_out = min(DRIFT_ROWS, round(recipe.data.held_out * len(fitting)))
    if num_held_out < 1 or len(fitting) - num_held_out < 1:
        raise UserError(
            f"data.general: {len(fitting)} conversations of at most refine.max_length = {limit} tokens are too few for "
            "the retain term and its held-out rows; add rows or raise refine.max_length"
        )
    chosen = [fitting[index] for index in order]
    return chosen[num_held_out:], chosen[:num_held_out]


def limit_held_out(held_out: list[HeldOut], limit: int, seed: int) -> list[HeldOut]:
    """At most `limit` prompts per label, sampled by pair so that twins stay together; all of them if they are fewer."""
    counts = Counter(row.label for row in held_out)
    if max(counts.values()) <= limit:
        return held_out
    labels_by_pair: dict[int, Counter[int]] = {}
    for row in held_out:
        labels_by_pair.setdefault(row.pair, Counter())[row.label] += 1
    pairs = list(labels_by_pair)
    kept: set[int] = set()
    counts = Counter()
    for index in draw(f"{seed}/measured prompts", len(pairs), 0, len(pairs)):
        labels = labels_by_pair[pairs[index]]
        if all(counts[label] + labels[label] <= limit for label in labels):
            counts += labels
            kept.add(pairs[index])
    return [row for row in held_out if row.pair in kept]
