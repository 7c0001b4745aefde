"""One optimizer step of stage 1: a contrastive batch over all ranks, and general rows for the retain term.

One optimizer step is one contrastive batch, whatever the ranks and micro-batches. Where a rank's share takes more than
one forward pass, its embeddings are computed first without a graph, then the loss and its gradient over the gathered
batch; the gradient then goes through one forward pass after the other (GradCache, arXiv 2101.06983).
"""

from collections.abc import Sequence
from typing import Any

import torch
from dcr_kernels import similarity_stats

from dcr_ds.engine.batching import forward_passes
from dcr_ds.engine.distributed import sum_over_ranks
from dcr_ds.models.batches import to_device
from dcr_ds.refine.embed import pooled
from dcr_ds.refine.objective import gathered_positives
from dcr_ds.refine.retain import retain_loss
from dcr_ds.refine.state import RefineState


def train_step(state: RefineState, step: int) -> dict[str, Any]:
    """Accumulate the gradients of a step, counted from 0, over its contrastive batch and retain rows. All ranks."""
    weight = state.recipe.refine.retain_weight
    contrastive_loss, h, labels, num_tokens = _contrastive_backward(state, step)
    retain_loss, num_retain_tokens = _retain_backward(state, step) if weight else (torch.zeros(()), 0)
    # figures are read after everything is launched: waiting between two passes would leave a GPU idle
    positive, negative = similarity_stats(h, labels, group=state.group)
    contrastive, retain = contrastive_loss.item(), retain_loss.item()
    return {
        "loss": contrastive + weight * retain,
        "contrastive_loss": contrastive,
        "retain_loss": retain,
        "positive_similarity": float(positive),
        "negative_similarity": float(negative),
        "step_tokens": num_tokens + num_retain_tokens,
    }


def _contrastive_backward(state: RefineState, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Backward pass of the contrastive loss of a step's batch over all ranks.

    Returns:
        The loss; this rank's h [B, D] and labels [B], −1 for rows that are not alive; tokens of the whole batch.
    """
    stage, ranks, sampler = state.recipe.refine, state.ranks, state.prompts.sampler
    batch = sampler.batch(step)
    tokens = [state.prompts.tokens[label, prompt.id] for prompt, label in batch]
    lengths = [len(row) for row in tokens]
    groups = forward_passes(range(len(batch)), lengths, ranks.rank, ranks.world_size, state.batching)
    # rows that are not alive only even out the ranks: label −1 takes no part in the loss
    own_labels = [batch[index][1] if alive else -1 for group in groups for index, alive in group]
    labels = to_device(torch.tensor(own_labels), ranks.device)

    def embed(group: Sequence[tuple[int, bool]]) -> torch.Tensor:
        rows = [tokens[index] for index, _ in group]
        return pooled(state.engine, rows, stage.pooling, state.prompts.num_shared, stage.packing, ranks.device)

    def loss_of(h: torch.Tensor) -> torch.Tensor:
        if stage.loss != "infonce":
            return state.loss(h, labels)
        positives = gathered_positives(sampler.positives(step), lengths, ranks, state.batching)
        return state.loss(h, labels, torch.tensor(positives, device=ranks.device))

    if len(groups) == 1:
        h = embed(groups[0])
        loss = loss_of(h)
        state.engine.backward(loss, scale_wrt_gas=False)
    else:
        with torch.no_grad():
            h = torch.cat([embed(group) for group in groups])
        h.requires_grad_()
        loss = loss_of(h)
        (gradient,) = torch.autograd.grad(loss, h)
        for group, part in zip(groups, gradient.split([len(group) for group in groups]), strict=True):
            state.engine.backward((embed(group) * part).float().sum(), scale_wrt_gas=False)
    return loss.detach(), h.detach(), labels, sum(lengths)


def _retain_backward(state: RefineState, step: int) -> tuple[torch.Tensor, int]:
    """Backward pass of the retain term: the mean over all tokens of a step's general rows, on all ranks.

    Returns:
        The mean, and the number of tokens.
    """
    ranks, general = state.ranks, state.prompts.general
    num_tokens = sum(len(general[row]) for row in state.retain_rows(step))
    # DeepSpeed averages over the ranks; the mean is over the tokens of all of them
    scale = state.recipe.refine.retain_weight * ranks.world_size / num_tokens
    total = torch.zeros((), device=ranks.device)
    for group in state.retain_passes(step):
        loss = retain_loss(state.engine, general, group, state.anchors, state.batching.packed, ranks.device)
        total += loss.detach()
        state.engine.backward(loss * scale, scale_wrt_gas=False)
    return sum_over_ranks(total, ranks).double() / num_tokens, num_tokens
