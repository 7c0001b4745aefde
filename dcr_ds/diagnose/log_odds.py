"""Refusal log-odds: log p_R − log(1 − p_R), where p_R is the probability that the answer opens with a refusal.

No sampling: forward passes over the prompts and the openings behind them. The openings form a prefix tree. At each
inner node the distribution of the next token is split into the children, which lead to openings, and all other tokens,
which do not. Both p_R and 1 − p_R are sums of such parts, so neither is computed as a difference from 1.

    log p_R       = logsumexp over openings of Σ log p(token | prompt, tokens before it)
    log (1 − p_R) = logsumexp over inner nodes of log p(node | prompt) + log p(no child | prompt, node)

An answer that is sampled opens with a refusal with probability p_R. One that is decoded greedily does so if the most
likely token at each node leads to an opening, which is read from the same distributions:

    margin = minimum, on the greedy path through the tree, of log p(most likely child) − log p(most likely other token)
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import Cache

from dcr_ds.diagnose.openings import Openings
from dcr_ds.diagnose.prefix_tree import Tree
from dcr_ds.diagnose.readings import Reader, Reading
from dcr_ds.diagnose.tree_pass import TreePass
from dcr_ds.errors import UserError
from dcr_ds.models.hooks.context import answering, hook_of
from dcr_ds.models.likelihood import LikelihoodHead
from dcr_ds.progress import heartbeat

BATCH_TOKENS = 2**14  # in the cache of a batch; an 8B model caches 128 KiB per token
# How far a log-probability may lie from that of the model's own forward pass: rounding, never another formula.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
TOLERANCE_16_BIT = 1.0


@torch.no_grad()
def refusal_log_odds(
    model, ids: Sequence[str], prompts: Sequence[Sequence[int]], openings: Openings, batch_size: int = 16
) -> list[dict]:
    """Rows {id, log_odds, margin, first_token, openings} of prompts, in their order.

    `log_odds` reads whole openings. `margin` is above 0 where greedy decoding opens with a refusal. `first_token` is
    the log-odds of the first tokens of the openings alone; it also counts ordinary answers with the same first token
    (see `Openings.first_tokens`). `openings` has the log-probability of each one, by its text. Everything is
    conditional on the `lead` that the chat template writes before each answer.

    Args:
        model: a causal language model of transformers, with or without an adapter (none on the head).
        ids: names of the prompts.
        prompts: token ids up to where the answer begins.
        batch_size: prompts per forward pass at most; fewer where they are long.

    Raises:
        UserError: no prompts, an empty prompt, values that are not finite, or a model that cannot be read this way.
    """
    if not prompts:
        raise UserError("refusal log-odds: there are no prompts")
    for name, prompt in zip(ids, prompts, strict=True):
        if not prompt:
            raise UserError(f"refusal log-odds: prompt {name} has no tokens")
    tree = _tree(openings)
    with_lead = [[*prompt, *openings.lead] for prompt in prompts]
    rows: list[dict] = [{}] * len(prompts)
    reader = Reader(model, tree)
    with _evaluation_mode(model):
        # a hook has to know the rows of a pass, so that there is none over what all prompts begin with
        run = TreePass(model.get_decoder(), tree, () if hook_of(model) else with_lead)
        for batch in _batches([len(prompt) for prompt in with_lead], batch_size, run.tokens):
            heartbeat("reading refusal log-odds")
            with answering(model, [prompts[index] for index in batch]):
                readings = reader.read(run([with_lead[index] for index in batch]))
            for index, reading in zip(batch, readings, strict=True):
                rows[index] = _row(ids[index], reading, openings)
        shortest = min(range(len(prompts)), key=lambda index: len(prompts[index]))
        _check_against_forward(model, prompts[shortest], openings, rows[shortest])
    return rows


@torch.no_grad()
def log_odds_after_answers(
    model, ids: Sequence[str], prompts: Sequence[Sequence[int]], openings: Openings, cache: Cache, check: bool = True
) -> list[dict] | None:
    """The rows of `refusal_log_odds` of prompts that the model has just answered as one left-padded batch.

    Only the openings are computed: the prompts are in the cache of the answers. None where that cannot be done, such
    as with sliding windows.

    Args:
        cache: of the prompts and answers; consumed.
        check: whether to compare a prompt with the model's own forward pass, as for the first batch.

    Raises:
        UserError: as `refusal_log_odds`.
    """
    tree = _tree(openings)
    if len(prompts) * len(tree.nodes) > BATCH_TOKENS:
        return None
    reader = Reader(model, tree)
    with _evaluation_mode(model):
        with answering(model, prompts):
            hidden = TreePass(model.get_decoder(), tree).after_answers(prompts, openings.lead, cache)
        if hidden is None:
            return None
        readings = reader.read(hidden)
        rows = [_row(name, reading, openings) for name, reading in zip(ids, readings, strict=True)]
        if check:
            shortest = min(range(len(prompts)), key=lambda index: len(prompts[index]))
            _check_against_forward(model, prompts[shortest], openings, rows[shortest])
    return rows


def first_token_impurity(rows: Sequence[dict]) -> float:
    """The share of the first tokens' probability, over all prompts, that does not continue as a refusal opening."""
    total = sum(_sigmoid(row["log_odds"]) for row in rows)
    return 1 - total / sum(_sigmoid(row["first_token"]) for row in rows)


def _tree(openings: Openings) -> Tree:
    return Tree.of([opening.tokens for opening in openings.openings])


def _row(name: str, reading: Reading, openings: Openings) -> dict:
    row: dict[str, Any] = {
        "id": name,
        "log_odds": reading.refusal - reading.other,
        "margin": reading.margin,
        "first_token": reading.first - reading.other_first,
        "openings": {opening.text: log_p for opening, log_p in zip(openings.openings, reading.openings, strict=True)},
    }
    if not all(map(math.isfinite, [row["log_odds"], row["margin"], row["first_token"], *reading.openings])):
        raise UserError(
            f"refusal log-odds: the logits after prompt {name} are not finite; the weights are damaged, or the model "
            "overflows in this dtype (load it in bfloat16 or float32)"
        )
    return row


def _check_against_forward(model, prompt: Sequence[int], openings: Openings, row: dict) -> None:
    """Compare the log-probability of the longest opening with the model's own logits.

    A model that changes its logits after the head, or a cache that cannot be repeated, would be read wrongly without an
    error. Skipped where the head is the one of training, which returns no logits.
    """
    if isinstance(model.get_output_embeddings(), LikelihoodHead):
        return
    opening = max(openings.openings, key=lambda opening: len(opening.tokens))
    size = len(opening.tokens)
    ids = [*prompt, *openings.lead, *opening.tokens]
    head = model.get_output_embeddings().weight
    tokens = torch.tensor([ids], device=head.device)
    with answering(model, [prompt]):
        logits = model(input_ids=tokens, use_cache=False, logits_to_keep=size + 1).logits[0, :-1]
    log_p = logits.double().log_softmax(-1).gather(-1, tokens[0, -size:, None]).sum().item()
    if not abs(log_p - row["openings"][opening.text]) <= TOLERANCE.get(head.dtype, TOLERANCE_16_BIT) * size:
        raise UserError(
            f"refusal log-odds: log p({opening.text!r}) is {row['openings'][opening.text]:.4f}, but {log_p:.4f} by the "
            f"model's own forward pass; {type(model).__name__} cannot be read this way"
        )


@contextlib.contextmanager
def _evaluation_mode(model) -> Iterator[None]:
    """Without dropout, and with a cache, which training with gradient checkpointing turns off."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _batches(lengths: Sequence[int], batch_size: int, tokens_of: Callable[[int], int]) -> Iterator[list[int]]:
    """Indices of prompts of similar length, longest first, with at most BATCH_TOKENS tokens in the cache."""
    left = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while left:
        size = max(1, min(batch_size, BATCH_TOKENS // tokens_of(lengths[left[0]])))
        yield left[:size]
        left = left[size:]


def _sigmoid(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds >= 0 else math.exp(log_odds) / (1 + math.exp(log_odds))
