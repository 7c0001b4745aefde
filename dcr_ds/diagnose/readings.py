"""What the output head says at the inner nodes of a prefix tree, and what that adds up to for a prompt.

Legend: B prompts, N inner nodes with the root, C most children of a node, D width, V vocabulary.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dcr_ds.diagnose.openings import Tokens
from dcr_ds.diagnose.prefix_tree import Tree
from dcr_ds.errors import UserError
from dcr_ds.models.hooks.knob import knob_of
from dcr_ds.models.likelihood import LikelihoodHead, after_head
from dcr_ds.models.tensor_parallel import first_own_row, gather_parts, own_rows

CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**27}  # logits per block, in float32: 8 MiB (a cache) or 512 MiB
MIN_CHUNK = 2**10  # tokens of the vocabulary per block
CHUNK_WEIGHT = 2**24  # elements of a 16-bit head per conversion to float32: 64 MiB


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of a prompt: log-probabilities of the openings, their sum and its complement, and first tokens."""

    openings: list[float]
    refusal: float
    other: float
    margin: float
    first: float
    other_first: float


@dataclass(frozen=True, slots=True)
class _Split:
    """The next token at an inner node: log p of each child, of all other tokens together, and of the best of these."""

    log_p: list[float]
    other: float
    best_other: float


class Reader:
    """Turns hidden states after the prompts and the inner nodes into readings, with a model's head.

    Raises:
        UserError: the head is quantised or has an adapter.
    """

    def __init__(self, model, tree: Tree):
        self.head = _head(model)
        self.knob = knob_of(model)
        self.scale, self.softcap = after_head(model.config)
        self.tree = tree
        self.children = [tree.children(node) for node in tree.nodes]
        self.number = {node: number for number, node in enumerate(tree.nodes)}

    def read(self, hidden: torch.Tensor) -> list[Reading]:
        """The readings of B prompts from hidden states [B, N, D]."""
        log_p, other, best_other = (part.tolist() for part in self.split(hidden))
        return [
            self.sum_up(
                [
                    _Split(log_p[row][node][: len(children)], other[row][node], best_other[row][node])
                    for node, children in enumerate(self.children)
                ]
            )
            for row in range(len(hidden))
        ]

    def split(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fields of `_Split` in float64 from hidden states [B, N, D]: [B, N, C], [B, N] and [B, N].

        The logits of a block of the vocabulary exist at a time. Their exponentials are in the dtype of the logits.
        """
        shape = hidden.shape[:2]
        most = max(map(len, self.children))
        chosen = torch.full((*shape, most), -torch.inf, dtype=torch.float64, device=hidden.device)
        other, best = (torch.full(shape, -torch.inf, dtype=torch.float64, device=hidden.device) for _ in range(2))
        for start, flat in self.logits(hidden.flatten(0, 1)):
            logits = flat.unflatten(0, shape)
            if self.knob is not None:  # at the root, where the answer begins
                stop = start + logits.shape[-1]
                raised = [token - start for token in self.knob.tokens if start <= token < stop]
                logits[:, 0, raised] += self.knob.strength
            if here := self.children_in(start, start + logits.shape[-1]):
                node, slot, column = (torch.tensor(index, device=hidden.device) for index in zip(*here, strict=True))
                chosen[:, node, slot] = logits[:, node, column].double()
                logits[:, node, column] = -torch.inf
            highest = logits.amax(-1)
            best = torch.maximum(best, highest.double())
            highest.clamp_min_(torch.finfo(logits.dtype).min)  # a block may have only children
            rest = logits.sub_(highest[..., None]).exp_().sum(-1).double().log()
            other = torch.logaddexp(other, highest.double() + rest)
        # of a head that is spread over ranks, each has read its own tokens
        parts = gather_parts(torch.cat([chosen, other[..., None], best[..., None]], dim=-1), self.head.weight)
        chosen, other, best = parts[..., :-2].amax(0), parts[..., -2].logsumexp(0), parts[..., -1].amax(0)
        total = torch.logaddexp(chosen.logsumexp(-1), other)
        return chosen - total[..., None], other - total, best - total

    def children_in(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(node, number of the child, token − start) of the children among the tokens start … stop − 1."""
        return [
            (node, slot, token - start)
            for node, children in enumerate(self.children)
            for slot, token in enumerate(children)
            if start <= token < stop
        ]

    def logits(self, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks [n, v] of the logits [n, V], each with its first token; of a spread head those of its own rows.

        They are in float32, of a 16-bit head as well; of a float64 model in float64.
        """
        with _gathered(self.head) as (whole, bias):
            weight, first = own_rows(whole), first_own_row(whole)
            kept = weight.dtype in (torch.float32, torch.float64)
            dtype = weight.dtype if kept else torch.float32
            size = max(MIN_CHUNK, CHUNK_LOGITS["cpu" if hidden.device.type == "cpu" else "cuda"] // len(hidden))
            if not kept:
                size = min(size, max(1, CHUNK_WEIGHT // weight.shape[1]))
            hidden = hidden.to(dtype) * self.scale
            for start in range(0, len(weight), size):
                logits = F.linear(hidden, weight[start : start + size].to(dtype))
                if bias is not None:
                    logits += bias[first + start : first + start + logits.shape[1]]
                if self.softcap is not None:
                    logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
                yield first + start, logits

    def sum_up(self, splits: Sequence[_Split]) -> Reading:
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
        return Reading(
            openings=openings,
            refusal=_logsumexp(openings),
            other=_logsumexp(left),
            margin=self.margin(steps, splits),
            first=_logsumexp(splits[0].log_p),
            other_first=splits[0].other,
        )

    def margin(self, steps: Sequence[dict[int, float]], splits: Sequence[_Split]) -> float:
        """The smallest lead of the most likely child over the most likely other token, on the greedy path."""
        node: Tokens = ()
        lowest = math.inf
        while (number := self.number.get(node)) is not None:
            token = max(steps[number], key=steps[number].__getitem__)
            lowest = min(lowest, steps[number][token] - splits[number].best_other)
            node = (*node, token)
        return lowest


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
    from dcr_ds.engine.deepspeed_import import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield head.weight, head.bias


def _logsumexp(values: Sequence[float]) -> float:
    highest = max(values)
    if not math.isfinite(highest):
        return highest
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))
