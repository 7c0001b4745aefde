"""Refusal log-odds: log p_R − log(1 − p_R), where p_R is the probability that the answer opens with a refusal.

No sampling: forward passes over the prompts and the openings behind them. The openings form a prefix tree. At each
inner node the distribution of the next token is split into the children, which lead to openings, and all other tokens,
which do not. Both p_R and 1 − p_R are sums of such parts, so neither is computed as a difference from 1.

    log p_R       = logsumexp over openings of Σ log p(token | prompt, tokens before it)
    log (1 − p_R) = logsumexp over inner nodes of log p(node | prompt) + log p(no child | prompt, node)

An answer that is sampled opens with a refusal with probability p_R. One that is decoded greedily does so if the most
likely token at each node leads to an opening, which is read from the same distributions:

    margin = minimum, on the greedy path through the tree, of log p(most likely child) − log p(most likely other token)

Legend: B prompts, N inner nodes with the root, D width, V vocabulary.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from dcr_ds.diagnose.openings import Openings, Tokens
from dcr_ds.diagnose.prefix_tree import Tree
from dcr_ds.diagnose.tree_pass import TreePass
from dcr_ds.errors import UserError
from dcr_ds.models.likelihood import LikelihoodHead
from dcr_ds.models.tensor_parallel import gather_columns, own_rows
from dcr_ds.progress import heartbeat

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**27}  # logits per chunk, in float32: 32 MiB on a CPU, 512 MiB on a GPU
CHUNK_WEIGHT = 2**24  # elements of a 16-bit head per conversion to float32: 64 MiB
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
    tree = Tree.of([opening.tokens for opening in openings.openings])
    with_lead = [[*prompt, *openings.lead] for prompt in prompts]
    rows: list[dict] = [{}] * len(prompts)
    reader = _Reader(model, tree)
    with _evaluation_mode(model):
        run = TreePass(model.get_decoder(), tree, with_lead)
        for batch in _batches([len(prompt) for prompt in with_lead], batch_size, run.tokens):
            heartbeat("reading refusal log-odds")
            readings = reader.read(run([with_lead[index] for index in batch]))
            for index, reading in zip(batch, readings, strict=True):
                rows[index] = _row(ids[index], reading, openings)
        shortest = min(range(len(prompts)), key=lambda index: len(prompts[index]))
        _check_against_forward(model, with_lead[shortest], openings, rows[shortest])
    return rows


def first_token_impurity(rows: Sequence[dict]) -> float:
    """The share of the first tokens' probability, over all prompts, that does not continue as a refusal opening."""
    total = sum(_sigmoid(row["log_odds"]) for row in rows)
    return 1 - total / sum(_sigmoid(row["first_token"]) for row in rows)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read of a prompt: log-probabilities of the openings, their sum and its complement, and first tokens."""

    openings: list[float]
    refusal: float
    other: float
    margin: float
    first: float
    other_first: float


class _Reader:
    """Turns hidden states after the prompts and the inner nodes into readings, with a model's head."""

    def __init__(self, model, tree: Tree):
        self.head = _head(model)
        # only Gemma caps its final logits, and only its config has the field
        self.softcap = getattr(model.config, "final_logit_softcapping", None)
        self.tree = tree
        self.children = [tree.children(node) for node in tree.nodes]
        self.number = {node: number for number, node in enumerate(tree.nodes)}

    def read(self, hidden: torch.Tensor) -> list[_Reading]:
        """The readings of B prompts from hidden states [B, N, D]."""
        nodes = [self.split(hidden[:, number], children) for number, children in enumerate(self.children)]
        return [
            self.sum_up([_Split(log_p[row], other[row], best[row]) for log_p, other, best in nodes])
            for row in range(len(hidden))
        ]

    def split(
        self, hidden: torch.Tensor, children: Sequence[int]
    ) -> tuple[list[list[float]], list[float], list[float]]:
        """The fields of `_Split` at one node for each of n prompts, from hidden states [n, D]; float64 sums."""
        vocabulary = getattr(self.head.weight, "ds_shape", self.head.weight.shape)[0]  # of ZeRO-3: the whole one
        rows = max(1, CHUNK_LOGITS["cpu" if hidden.device.type == "cpu" else "cuda"] // vocabulary)
        log_p, others, best = [], [], []
        for some in hidden.split(rows):
            logits = self.logits(some)
            chosen = logits[:, children].double()
            logits[:, children] = -torch.inf
            highest = logits.amax(-1, keepdim=True)
            # exponentials in the dtype of the logits, their sum in float64
            other = highest[:, 0].double() + (logits - highest).exp_().sum(-1, dtype=torch.float64).log()
            total = torch.logaddexp(chosen.logsumexp(-1), other)
            log_p += (chosen - total[:, None]).tolist()
            others += (other - total).tolist()
            best += (highest[:, 0].double() - total).tolist()
        return log_p, others, best

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] in float32, of a 16-bit head as well; of a float64 model in float64."""
        with _gathered(self.head) as (weight, bias):
            own = own_rows(weight)
            if own.dtype in (torch.float32, torch.float64):
                logits = F.linear(hidden.to(own.dtype), own)
            else:
                rows = max(1, CHUNK_WEIGHT // own.shape[1])
                logits = torch.cat([F.linear(hidden.float(), some.float()) for some in own.split(rows)], dim=-1)
            logits = gather_columns(logits, weight)
            if bias is not None:
                logits += bias
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def sum_up(self, splits: Sequence["_Split"]) -> _Reading:
        """The reading of a prompt from the splits at all inner nodes."""
        steps = [
            dict(zip(children, split.log_p, strict=True)) for children, split in zip(self.children, splits, strict=True)
        ]
        reached: dict[Tokens, float] = {(): 0.0}
        for tokens in (*self.tree.nodes[1:], *self.tree.openings):
            before = tokens[:-1]
            reached[tokens] = reached[before] + steps[self.number[before]][tokens[-1]]
        openings = [reached[tokens] for tokens in self.tree.openings]
        left = [reached[node] + split.other for node, split in zip(self.tree.nodes, splits, strict=True)]
        return _Reading(
            openings=openings,
            refusal=_logsumexp(openings),
            other=_logsumexp(left),
            margin=self.margin(steps, splits),
            first=_logsumexp(splits[0].log_p),
            other_first=splits[0].other,
        )

    def margin(self, steps: Sequence[dict[int, float]], splits: Sequence["_Split"]) -> float:
        """The smallest lead of the most likely child over the most likely other token, on the greedy path."""
        node: Tokens = ()
        lowest = math.inf
        while (number := self.number.get(node)) is not None:
            token = max(steps[number], key=steps[number].__getitem__)
            lowest = min(lowest, steps[number][token] - splits[number].best_other)
            node = (*node, token)
        return lowest


@dataclass(frozen=True, slots=True)
class _Split:
    """The next token at an inner node: log p of each child, of all other tokens together, and of the best of these."""

    log_p: list[float]
    other: float
    best_other: float


def _row(name: str, reading: _Reading, openings: Openings) -> dict:
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
    tokens = torch.tensor([[*prompt, *opening.tokens]], device=model.get_output_embeddings().weight.device)
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=size + 1).logits[0, :-1]
    log_p = logits.double().log_softmax(-1).gather(-1, tokens[0, -size:, None]).sum().item()
    if not abs(log_p - row["openings"][opening.text]) <= TOLERANCE.get(logits.dtype, TOLERANCE_16_BIT) * size:
        raise UserError(
            f"refusal log-odds: log p({opening.text!r}) is {row['openings'][opening.text]:.4f}, but {log_p:.4f} by the "
            f"model's own forward pass; {type(model).__name__} cannot be read this way"
        )


def _head(model) -> torch.nn.Linear | LikelihoodHead:
    head = model.get_output_embeddings()
    if not isinstance(head, (torch.nn.Linear, LikelihoodHead)) or not head.weight.is_floating_point():
        raise UserError(
            f"refusal log-odds: the output head ({type(head).__name__}) must be a linear layer that is not quantised "
            "and has no adapter; merge the adapter first"
        )
    return head


@contextlib.contextmanager
def _gathered(head: torch.nn.Linear | LikelihoodHead) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight and bias of the head, gathered where ZeRO-3 has partitioned them."""
    parameters = [head.weight] if head.bias is None else [head.weight, head.bias]
    if not hasattr(head.weight, "ds_id"):
        yield head.weight, head.bias
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield head.weight, head.bias


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


def _logsumexp(values: Sequence[float]) -> float:
    highest = max(values)
    if not math.isfinite(highest):
        return highest
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))


def _sigmoid(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds >= 0 else math.exp(log_odds) / (1 + math.exp(log_odds))
