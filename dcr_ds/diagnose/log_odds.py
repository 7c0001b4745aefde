"""Refusal log-odds: log p_R − log(1 − p_R), where p_R is the probability that the answer opens with a refusal.

No sampling: one forward pass over the prompts, and one over the openings that continues from its key-value cache. The
openings form a prefix tree. At each inner node the distribution of the next token is split into the children, which
lead to openings, and all other tokens, which do not. Both p_R and 1 − p_R are sums of such parts, so neither is
computed as a difference from 1.

    log p_R       = logsumexp over openings of Σ log p(token | prompt, tokens before it)
    log (1 − p_R) = logsumexp over inner nodes of log p(node | prompt) + log p(no child | prompt, node)

Legend: B prompts, P paths of depth d through the inner nodes, N inner nodes, D width, V vocabulary.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from dcr_ds.diagnose.openings import Openings, Tokens
from dcr_ds.errors import UserError
from dcr_ds.models.likelihood import LikelihoodHead

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**27}  # logits at once, in float64: 64 MiB on a CPU, 1 GiB on a GPU
CHUNK_WEIGHT = 2**24  # elements of a 16-bit head that are converted to float32 at once: 64 MiB
CACHED_TOKENS = 2**14  # B × P × length at once; an 8B model caches 128 KiB per token
# How far a log-probability may lie from that of the model's own forward pass: rounding, never another formula.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
TOLERANCE_16_BIT = 1.0


@torch.no_grad()
def refusal_log_odds(
    model, ids: Sequence[str], prompts: Sequence[Sequence[int]], openings: Openings, batch_size: int = 16
) -> list[dict]:
    """Rows {id, log_odds, first_token, openings} of prompts, in their order.

    `log_odds` reads whole openings. `first_token` is the log-odds of their first tokens alone; it also counts ordinary
    answers with the same first token (see `Openings.first_tokens`). `openings` has the log-probability of each one,
    by its text. Everything is conditional on the `lead` that the chat template writes before each answer.

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
    reader = _Reader(model, tree)
    with_lead = [[*prompt, *openings.lead] for prompt in prompts]
    rows: list[dict] = [{}] * len(prompts)
    with _evaluation_mode(model):
        for batch in _batches([len(prompt) for prompt in with_lead], batch_size, tree):
            readings = reader.read([with_lead[index] for index in batch])
            for index, reading in zip(batch, readings, strict=True):
                rows[index] = _row(ids[index], reading, openings)
        shortest = min(range(len(prompts)), key=lambda index: len(prompts[index]))
        _check_against_forward(model, with_lead[shortest], openings, rows[shortest])
    return rows


def first_token_impurity(rows: Sequence[dict]) -> float:
    """The share of the first tokens' probability, over all prompts, that does not continue as a refusal opening."""
    whole = sum(_sigmoid(row["log_odds"]) for row in rows)
    return 1 - whole / sum(_sigmoid(row["first_token"]) for row in rows)


@dataclass(frozen=True)
class Tree:
    """The prefix tree of openings: its inner nodes, the root first, and the paths that lead to the deepest of them."""

    openings: tuple[Tokens, ...]
    nodes: tuple[Tokens, ...]
    paths: tuple[Tokens, ...]

    @classmethod
    def of(cls, openings: Sequence[Tokens]) -> "Tree":
        """Build the tree.

        Raises:
            UserError: there is no opening, one is empty, or one is a prefix of another (their probabilities would be
                counted twice).
        """
        if not openings or not all(openings):
            raise UserError("refusal log-odds: there are no openings, or one has no tokens")
        inner = {tokens[:length] for tokens in openings for length in range(len(tokens))}
        if len(set(openings)) < len(openings) or inner & set(openings):
            raise UserError("refusal log-odds: an opening is a prefix of another one; keep the shorter of the two")
        nodes = tuple(sorted(inner, key=lambda node: (len(node), node)))
        before = {node[:-1] for node in nodes if node}
        return cls(tuple(openings), nodes, tuple(node for node in nodes if node and node not in before))

    def children(self, node: Tokens) -> list[int]:
        """The tokens after a node that lead to openings."""
        size = len(node)
        return sorted({t[size] for t in (*self.openings, *self.nodes) if len(t) > size and t[:size] == node})

    def places(self) -> list[tuple[int, int]]:
        """For each inner node but the root: a path that contains it, and its last token's place in that path."""
        return [
            next((number, len(node) - 1) for number, path in enumerate(self.paths) if path[: len(node)] == node)
            for node in self.nodes[1:]
        ]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read of a prompt: log-probabilities of the openings, their sum and its complement, and first tokens."""

    openings: list[float]
    refusal: float
    other: float
    first: float
    other_first: float


class _Reader:
    """Reads batches of prompts with one model and one tree."""

    def __init__(self, model, tree: Tree):
        self.decoder, self.head = model.get_decoder(), _head(model)
        # only Gemma caps its final logits, and only its config has the field
        self.softcap = getattr(model.config, "final_logit_softcapping", None)
        # transformers 5 renames the argument
        takes = inspect.signature(self.decoder.forward).parameters
        self.cache_name = "cache" if "cache" in takes else "past_key_values"
        self.tree, self.places = tree, tree.places()
        self.children = [tree.children(node) for node in tree.nodes]
        self.number = {node: number for number, node in enumerate(tree.nodes)}

    def read(self, prompts: Sequence[Sequence[int]]) -> list[_Reading]:
        hidden = self.hidden(prompts)  # [B, N, D]
        size, nodes, _ = hidden.shape
        parts = [
            self.split(hidden[:, number], children) for number, children in enumerate(self.children)
        ]  # by node: log p of its children [B, children], log p of no child [B]
        return [
            self.sum_up([(log_p[row].tolist(), float(other[row])) for log_p, other in parts]) for row in range(size)
        ]

    def hidden(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Hidden states [B, N, D] after the prompt and each inner node."""
        device = self.head.weight.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        width = int(lengths.max())
        tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        place = torch.arange(width, device=device) - (width - lengths)[:, None]
        mask = (place >= 0).long()
        cache = DynamicCache(config=self.decoder.config)
        root = self.decoder(
            input_ids=tokens, attention_mask=mask, position_ids=place.clamp_min(0), **{self.cache_name: cache}
        ).last_hidden_state[:, -1:]
        if not self.tree.paths:
            return root
        paths, depth = len(self.tree.paths), max(map(len, self.tree.paths))
        cache.batch_repeat_interleave(paths)
        # Padding stands to the right of a path, where causal attention keeps it from what is read.
        ahead = torch.tensor([[*path, *[0] * (depth - len(path))] for path in self.tree.paths], device=device)
        later = self.decoder(
            input_ids=ahead.repeat(len(prompts), 1),
            attention_mask=F.pad(mask.repeat_interleave(paths, 0), (0, depth), value=1),
            position_ids=(lengths[:, None] + torch.arange(depth, device=device)).repeat_interleave(paths, 0),
            **{self.cache_name: cache},
        ).last_hidden_state.unflatten(0, (len(prompts), paths))  # [B, P, d, D]
        path, step = (torch.tensor(list(where), device=device) for where in zip(*self.places, strict=True))
        return torch.cat([root, later[:, path, step]], dim=1)

    def split(self, hidden: torch.Tensor, children: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """log p of each child token [n, children] and of all other tokens together [n], in float64, on the CPU."""
        rows = max(1, CHUNK_LOGITS["cpu" if hidden.device.type == "cpu" else "cuda"] // len(self.head.weight))
        log_p, others = [], []
        for some in hidden.split(rows):
            logits = self.logits(some).double()
            total = logits.logsumexp(-1, keepdim=True)
            log_p.append((logits[:, children] - total).cpu())
            logits[:, children] = -torch.inf
            others.append((logits.logsumexp(-1) - total[:, 0]).cpu())
        return torch.cat(log_p), torch.cat(others)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] in float32, of a 16-bit head as well; of a float64 model in float64."""
        with _gathered(self.head) as (weight, bias):
            if weight.dtype in (torch.float32, torch.float64):
                logits = F.linear(hidden.to(weight.dtype), weight)
            else:
                rows = max(1, CHUNK_WEIGHT // weight.shape[1])
                logits = torch.cat([F.linear(hidden.float(), some.float()) for some in weight.split(rows)], dim=-1)
            if bias is not None:
                logits += bias
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def sum_up(self, parts: Sequence[tuple[list[float], float]]) -> _Reading:
        """Put the splits of the inner nodes (log p of children, log p of no child) of one prompt together."""
        step = [
            dict(zip(children, log_p, strict=True)) for children, (log_p, _) in zip(self.children, parts, strict=True)
        ]
        reached = {(): 0.0}
        for tokens in (*self.tree.nodes[1:], *self.tree.openings):
            before = tokens[:-1]
            reached[tokens] = reached[before] + step[self.number[before]][tokens[-1]]
        openings = [reached[tokens] for tokens in self.tree.openings]
        others = [reached[node] + other for node, (_, other) in zip(self.tree.nodes, parts, strict=True)]
        first, other_first = parts[0]
        return _Reading(openings, _logsumexp(openings), _logsumexp(others), _logsumexp(first), other_first)


def _row(name: str, reading: _Reading, openings: Openings) -> dict:
    row = {
        "id": name,
        "log_odds": reading.refusal - reading.other,
        "first_token": reading.first - reading.other_first,
        "openings": {opening.text: log_p for opening, log_p in zip(openings.openings, reading.openings, strict=True)},
    }
    if not all(map(math.isfinite, [row["log_odds"], row["first_token"], *reading.openings])):
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


def _head(model) -> torch.nn.Module:
    head = model.get_output_embeddings()
    if not isinstance(head, (torch.nn.Linear, LikelihoodHead)) or not head.weight.is_floating_point():
        raise UserError(
            f"refusal log-odds: the output head ({type(head).__name__}) must be a linear layer that is not quantised "
            "and has no adapter; merge the adapter first"
        )
    return head


@contextlib.contextmanager
def _gathered(head: torch.nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
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


def _batches(lengths: Sequence[int], batch_size: int, tree: Tree) -> Iterator[list[int]]:
    """Indices of prompts of similar length, longest first, with at most CACHED_TOKENS tokens in the repeated cache."""
    left = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while left:
        cached = lengths[left[0]] * max(1, len(tree.paths))
        size = max(1, min(batch_size, CACHED_TOKENS // cached))
        yield left[:size]
        left = left[size:]


def _logsumexp(values: Sequence[float]) -> float:
    highest = max(values)
    if not math.isfinite(highest):
        return highest
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))


def _sigmoid(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds >= 0 else math.exp(log_odds) / (1 + math.exp(log_odds))
