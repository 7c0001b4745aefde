"""One optimizer step of stage 1: a contrastive batch over all ranks, and general rows for the retain term.

One optimizer step is one contrastive batch, whatever the ranks and micro-batches. Where a rank's share takes more than
one forward pass, its embeddings are computed first without a graph, then the loss and its gradient over the gathered
batch; the gradient then goes through one forward pass after the other (GradCache, arXiv 2101.06983).

Under ZeRO-3 every forward pass gathers the trunk from all ranks. With packed rows, both terms are therefore computed in
one pass where the share of each rank fits in one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from dcr_kernels import similarity_stats

from dcr_ds.engine.batching import forward_passes, passes_of_ranks
from dcr_ds.engine.distributed import sum_over_ranks
from dcr_ds.engine.stopwatch import Stopwatch
from dcr_ds.models.batches import to_device
from dcr_ds.refine.embed import Row, hidden_states, pool_rows, pooled
from dcr_ds.refine.objective import gathered_positives
from dcr_ds.refine.retain import Group, distances_of, retain_loss
from dcr_ds.refine.state import RefineState


@dataclass(frozen=True)
class Contrast:
    """The contrastive batch of a step: tokens and labels of all prompts, and this rank's forward passes."""

    tokens: Sequence[Row]
    labels: list[int]
    groups: list[Group]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.tokens]

    @classmethod
    def of(cls, state: RefineState, step: int) -> "Contrast":
        batch, ranks = state.prompts.sampler.batch(step), state.ranks
        tokens = [state.prompts.tokens[label, prompt.id] for prompt, label in batch]
        lengths = [len(row) for row in tokens]
        groups = forward_passes(range(len(batch)), lengths, ranks.rank, ranks.world_size, state.batching)
        return cls(tokens, [label for _, label in batch], groups)

    def rows(self, group: Group) -> list[Row]:
        return [self.tokens[index] for index, _ in group]


def train_step(state: RefineState, step: int) -> dict[str, Any]:
    """Accumulate the gradients of a step, counted from 0, over its contrastive batch and retain rows. All ranks."""
    weight = state.recipe.refine.retain_weight
    contrast = Contrast.of(state, step)
    labels = _own_labels(state, contrast)
    watch = Stopwatch(state.ranks.device)
    if weight and is_one_pass(state, contrast, step):
        contrastive_loss, retain_sum, h = _joint_backward(state, contrast, labels, step)
    else:
        contrastive_loss, h = _contrastive_backward(state, contrast, labels, step)
        with watch:
            retain_sum = _retain_backward(state, step) if weight else torch.zeros((), device=state.ranks.device)
    num_retain = state.num_retain_tokens(step) if weight else 0
    retain_loss = sum_over_ranks(retain_sum, state.ranks).double() / num_retain if weight else retain_sum
    # figures are read after everything is launched: waiting between two passes would leave a GPU idle
    positive, negative = similarity_stats(h, labels, group=state.group)
    contrastive, retain = contrastive_loss.item(), retain_loss.item()
    return {
        "loss": contrastive + weight * retain,
        "contrastive_loss": contrastive,
        "retain_loss": retain,
        "positive_similarity": float(positive),
        "negative_similarity": float(negative),
        "retain_seconds": round(watch.seconds, 4),
        "step_tokens": sum(contrast.lengths) + num_retain,
    }


def is_one_pass(state: RefineState, contrast: Contrast, step: int) -> bool:
    """Whether one forward pass takes the whole share of both terms, on every rank."""
    if not state.joins_passes:
        return False
    retain = state.retain_rows(step)
    retain_lengths = [len(state.prompts.general[row]) for row in retain]
    world = state.ranks.world_size
    plans = (
        passes_of_ranks(lengths, lengths, range(world), world, state.batching)
        for lengths in (contrast.lengths, retain_lengths)
    )
    for first, second in zip(*plans, strict=True):
        tokens = sum(length for group in [*first, *second] for length, _ in group)
        if len(first) > 1 or len(second) > 1 or tokens > (state.batching.packed_length or 0):
            return False
    return True


def _own_labels(state: RefineState, contrast: Contrast) -> torch.Tensor:
    """This rank's labels [B]; rows that are not alive only even out the ranks: label −1 takes no part in the loss."""
    own = [contrast.labels[index] if alive else -1 for group in contrast.groups for index, alive in group]
    return to_device(torch.tensor(own), state.ranks.device)


def _loss_of(state: RefineState, contrast: Contrast, h: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
    """The contrastive loss over all ranks, from this rank's h [B, D] and labels [B]."""
    if state.recipe.refine.loss != "infonce":
        return state.loss(h, labels)
    positives = state.prompts.sampler.positives(step)
    own = gathered_positives(positives, contrast.lengths, state.ranks, state.batching)
    return state.loss(h, labels, torch.tensor(own, device=state.ranks.device))


def _contrastive_backward(
    state: RefineState, contrast: Contrast, labels: torch.Tensor, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Backward pass of the contrastive loss of a step's batch over all ranks.

    Returns:
        The loss, and this rank's h [B, D].
    """
    stage, ranks, groups = state.recipe.refine, state.ranks, contrast.groups

    def embed(group: Group) -> torch.Tensor:
        rows = contrast.rows(group)
        return pooled(state.engine, rows, stage.pooling, state.prompts.num_shared, stage.packing, ranks.device)

    if len(groups) == 1:
        h = embed(groups[0])
        loss = _loss_of(state, contrast, h, labels, step)
        state.engine.backward(loss, scale_wrt_gas=False)
    else:
        with torch.no_grad():
            h = torch.cat([embed(group) for group in groups])
        h.requires_grad_()
        loss = _loss_of(state, contrast, h, labels, step)
        (gradient,) = torch.autograd.grad(loss, h)
        for group, part in zip(groups, gradient.split([len(group) for group in groups]), strict=True):
            state.engine.backward((embed(group) * part).float().sum(), scale_wrt_gas=False)
    return loss.detach(), h.detach()


def _retain_scale(state: RefineState, step: int) -> float:
    """What turns a sum over this rank's tokens into its part of the retain term, the mean over all tokens of a step.

    DeepSpeed averages over the ranks; the mean is over the tokens of all of them.
    """
    return state.recipe.refine.retain_weight * state.ranks.world_size / state.num_retain_tokens(step)


def _retain_backward(state: RefineState, step: int) -> torch.Tensor:
    """Backward pass of the retain term; the sum over the tokens of this rank's general rows."""
    ranks, general = state.ranks, state.prompts.general
    scale = _retain_scale(state, step)
    total = torch.zeros((), device=ranks.device)
    for group in state.retain_passes(step):
        loss = retain_loss(state.engine, general, group, state.anchors, state.batching.packed, ranks.device)
        total += loss.detach()
        state.engine.backward(loss * scale, scale_wrt_gas=False)
    return total


def _joint_backward(
    state: RefineState, contrast: Contrast, labels: torch.Tensor, step: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both backward passes in one; see `is_one_pass`.

    Returns:
        The contrastive loss, the sum of the retain term over this rank's tokens, and its h [B, D].
    """
    (group,), (retain_group,) = contrast.groups, state.retain_passes(step)
    general, stage = state.prompts.general, state.recipe.refine
    prompts = contrast.rows(group)
    rows = [*prompts, *(general[index] for index, _ in retain_group)]
    hidden, bounds = hidden_states(state.engine, rows, state.batching.packed, state.ranks.device)
    num_tokens = sum(len(row) for row in prompts)
    own_bounds = bounds[: len(prompts) + 1]
    h = pool_rows(hidden[:num_tokens], own_bounds, prompts, stage.pooling, state.prompts.num_shared)
    loss = _loss_of(state, contrast, h, labels, step)
    distance, weight = distances_of(hidden[num_tokens:], general, retain_group, state.anchors)
    retain_sum = (distance * weight).sum()
    state.engine.backward(loss + retain_sum * _retain_scale(state, step), scale_wrt_gas=False)
    return loss.detach(), retain_sum.detach(), h.detach()
