"""Stage 1: contrastive refinement of the trunk (DCR, arXiv 2603.03323).

A contrastive loss at the output of block ℓ pulls the hidden states of seemingly toxic prompts away from those of toxic
ones; a retain term holds the activations of general conversations in place. One optimizer step is one contrastive batch
over all ranks, whatever the micro-batches: where a micro-batch is smaller than a rank's share, the embeddings are
computed first without a graph, the loss and its gradient over the gathered batch next, and the gradient then goes
through each micro-batch (GradCache).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from dcr_kernels import ContrastiveLoss, similarity_stats

from dcr_ds.data.load import RunData
from dcr_ds.data.sampler import draw
from dcr_ds.engine.batching import Batching, forward_passes
from dcr_ds.engine.build import (
    build_engine,
    checkpoint_activations,
    sharded_loading,
    stage_config,
    trained_weights,
)
from dcr_ds.engine.distributed import Ranks, barrier, print_on_main, sum_over_ranks
from dcr_ds.engine.session import Session
from dcr_ds.engine.watch.progress import heartbeat
from dcr_ds.models.adapters import add_lora, write_trained
from dcr_ds.models.batches import to_device
from dcr_ds.models.chat import load_tokenizer
from dcr_ds.models.fused import fuse_blocks
from dcr_ds.models.load import DTYPES
from dcr_ds.models.trunk import load_trunk
from dcr_ds.models.varlen import stage_attention
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import StageFolder
from dcr_ds.refine.embed import embed_all, pooled, shards
from dcr_ds.refine.objective import contrastive_loss, gathered_positives
from dcr_ds.refine.prompts import RefinePrompts, encode_refine_prompts
from dcr_ds.refine.retain import Anchors, drift, retain_loss
from dcr_ds.refine.separation import separation


@dataclass
class Trunk:
    """The trunk under training, with what a step and a measurement need."""

    engine: Any
    recipe: Recipe
    prompts: RefinePrompts
    batching: Batching
    ranks: Ranks
    anchors: Anchors
    held_out_anchors: Anchors
    group: Any
    loss: ContrastiveLoss


def refine(recipe: Recipe, source: Path, data: RunData, folder: Path, ranks: Ranks) -> None:
    """Run stage 1 from `source` into `folder`: metrics.jsonl, checkpoints/, model/, summary.json. All ranks.

    Raises:
        Stopped: a signal arrived; the state is saved.
        Diverged: the loss is no longer finite; the last checkpoint is kept.
    """
    started = time.monotonic()
    stage = recipe.refine
    folder.mkdir(parents=True, exist_ok=True)
    prompts = encode_refine_prompts(recipe, data, load_tokenizer(source, recipe.model.chat_template))
    for note in prompts.notes:
        print_on_main(ranks, note)
    trunk = build_trunk(recipe, source, prompts, ranks)
    with Session("refine", recipe, trunk.engine, folder, stage.max_steps, ranks, started) as session:
        state = session.state
        if session.is_new:
            start = measure(trunk)
            state |= {"best_gap": start["gap"], "best_step": 0, "start": start}
            print_on_main(
                ranks,
                f"refine: layer {stage.layer}, held-out gap {start['gap']:.3f}, AUC {start['auc']:.3f} "
                "before the first step",
            )
        while not (reason := state.get("stopped_because")):
            row = train_step(trunk, session.step)
            session.take_step(row, [prompt.id for prompt, _ in prompts.sampler.batch(session.step)])
            if session.step % stage.measure_every == 0 or session.step == stage.max_steps:
                row |= measure(trunk)
            session.log(row)
            _note_progress(state, row, stage)
            session.save_or_stop(is_last="stopped_because" in state)
    print_on_main(ranks, f"refine: {reason}")
    weights = trained_weights(trunk.engine, ranks)
    if ranks.is_main:
        write_trained(trunk.engine.module, weights, source, StageFolder(folder), prefix="model.")
    barrier(ranks)
    session.finish({"layer": stage.layer, "final": state["last"]})


def train_step(trunk: Trunk, step: int) -> dict[str, Any]:
    """Accumulate the gradients of step `step` (from 0) over its contrastive batch and its retain rows. All ranks."""
    weight = trunk.recipe.refine.retain_weight
    contrastive, h, labels, tokens = _contrastive_backward(trunk, step)
    retain, retain_tokens = _retain_backward(trunk, step) if weight else (torch.zeros_like(contrastive), 0)
    # figures are read after all is launched: a GPU that is waited for between two passes stands idle
    similarities = similarity_stats(h, labels, group=trunk.group)
    loss, retain_loss, positive, negative = (float(each) for each in (contrastive, retain, *similarities))
    return {
        "loss": loss + weight * retain_loss,
        "contrastive_loss": loss,
        "retain_loss": retain_loss,
        "positive_similarity": positive,
        "negative_similarity": negative,
        "step_tokens": tokens + retain_tokens,
    }


def measure(trunk: Trunk) -> dict[str, float]:
    """Held-out separation and drift. All ranks; all get the same figures."""
    stage = trunk.recipe.refine
    rows, labels, pairs = zip(*trunk.prompts.held_out, strict=True)
    h = embed_all(trunk.engine, rows, stage.pooling, trunk.prompts.num_shared, trunk.batching, trunk.ranks)
    figures = separation(h.cpu(), torch.tensor(labels), torch.tensor(pairs))
    figures["drift"] = drift(
        trunk.engine, trunk.prompts.held_out_general, trunk.held_out_anchors, trunk.batching, trunk.ranks
    )
    return {name: round(value, 6) for name, value in figures.items()}


def build_trunk(recipe: Recipe, source: Path, prompts: RefinePrompts, ranks: Ranks) -> Trunk:
    stage = recipe.refine
    config = stage_config(recipe.deepspeed, stage, recipe.model.dtype, ranks)
    quantize, dtype = recipe.model.quantize, DTYPES[recipe.model.dtype]
    attention = stage_attention(recipe.model, stage.packing, ranks.device)
    with sharded_loading(config, quantize):
        model = load_trunk(source, stage.layer, dtype, attention, quantize, ranks.device)
    fuse_blocks(model, recipe.model.kernels)
    if stage.adapter == "lora":
        torch.manual_seed(recipe.seed)  # the same initial adapter on all ranks
        model = add_lora(model, stage.lora, "refine.lora")
    model.train()
    if recipe.model.activation_checkpointing:
        checkpoint_activations(model)
    engine = build_engine(model, stage, config, "constant", stage.max_steps, ranks)
    group = torch.distributed.group.WORLD if ranks.world_size > 1 else None
    loss = contrastive_loss(stage, group)
    trunk = Trunk(engine, recipe, prompts, Batching.of(stage), ranks, Anchors(), Anchors(), group, loss)
    # the original activations, before anything is trained and before a checkpoint is loaded
    if stage.retain_weight:
        for indices in _retain_anchor_batches(trunk):
            trunk.anchors.keep(engine, prompts.general, indices, stage.packing, ranks.device)
            heartbeat("refine, activations of the original model")
    for shard in shards(prompts.held_out_general, trunk.batching, ranks):
        indices = [index for index, _ in shard]
        trunk.held_out_anchors.keep(engine, prompts.held_out_general, indices, stage.packing, ranks.device)
    return trunk


def _contrastive_backward(trunk: Trunk, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Backward of the contrastive loss of the batch of a step over all ranks.

    Returns:
        The loss; this rank's h [B, D] and labels [B], −1 for a dead copy; tokens of the batch over all ranks.
    """
    stage, ranks, sampler = trunk.recipe.refine, trunk.ranks, trunk.prompts.sampler
    batch = sampler.batch(step)
    tokens = [trunk.prompts.tokens[label, prompt.id] for prompt, label in batch]
    labels = [label for _, label in batch]
    lengths = [len(row) for row in tokens]
    groups = forward_passes(range(len(batch)), lengths, ranks.rank, ranks.world_size, trunk.batching)
    # dead copies only even out the ranks: label −1 takes no part in the loss
    own_labels = [labels[index] if alive else -1 for group in groups for index, alive in group]
    own_labels = to_device(torch.tensor(own_labels), ranks.device)

    def embed(group: Sequence[tuple[int, bool]]) -> torch.Tensor:
        rows = [tokens[index] for index, _ in group]
        return pooled(trunk.engine, rows, stage.pooling, trunk.prompts.num_shared, stage.packing, ranks.device)

    def loss_of(h: torch.Tensor) -> torch.Tensor:
        if stage.loss != "infonce":
            return trunk.loss(h, own_labels)
        positives = gathered_positives(sampler, step, lengths, ranks.rank, ranks.world_size, trunk.batching)
        return trunk.loss(h, own_labels, torch.tensor(positives, device=ranks.device))

    if len(groups) == 1:
        h = embed(groups[0])
        loss = loss_of(h)
        trunk.engine.backward(loss, scale_wrt_gas=False)
    else:
        with torch.no_grad():
            h = torch.cat([embed(group) for group in groups])
        h.requires_grad_()
        loss = loss_of(h)
        (gradient,) = torch.autograd.grad(loss, h)
        for group, part in zip(groups, gradient.split([len(group) for group in groups]), strict=True):
            trunk.engine.backward((embed(group) * part).float().sum(), scale_wrt_gas=False)
    return loss.detach(), h.detach(), own_labels, sum(lengths)


def _retain_rows(trunk: Trunk, step: int) -> list[int]:
    """Indices of the general rows of a step."""
    stage = trunk.recipe.refine
    return draw(
        f"{trunk.recipe.seed}/retain", len(trunk.prompts.general), step * stage.retain_batch, stage.retain_batch
    )


def _retain_groups(trunk: Trunk, step: int, rank: int) -> list[Sequence[tuple[int, bool]]]:
    rows = _retain_rows(trunk, step)
    lengths = [len(trunk.prompts.general[index]) for index in rows]
    return forward_passes(rows, lengths, rank, trunk.ranks.world_size, trunk.batching)


def _retain_backward(trunk: Trunk, step: int) -> tuple[torch.Tensor, int]:
    """Backward of the retain term: the mean over all tokens of the step's general rows, over all ranks.

    Returns:
        The mean, and the number of tokens.
    """
    ranks, general = trunk.ranks, trunk.prompts.general
    tokens = sum(len(general[index]) for index in _retain_rows(trunk, step))
    total = torch.zeros((), device=ranks.device)
    for group in _retain_groups(trunk, step, ranks.rank):
        indices, alive = zip(*group, strict=True)
        summed = retain_loss(trunk.engine, general, indices, alive, trunk.anchors, trunk.batching.packed, ranks.device)
        total += summed.detach()
        # DeepSpeed averages over the ranks; the mean is over the tokens of all of them
        scale = trunk.recipe.refine.retain_weight * ranks.world_size / tokens
        trunk.engine.backward(summed * scale, scale_wrt_gas=False)
    return sum_over_ranks(total, ranks).double() / tokens, tokens


def _retain_anchor_batches(trunk: Trunk) -> list[list[int]]:
    """The forward passes that compute this rank's anchors: every row it will meet, equally many on all ranks."""
    passes = []
    for rank in range(trunk.ranks.world_size):
        groups = (_retain_groups(trunk, step, rank) for step in range(trunk.recipe.refine.max_steps))
        rows = sorted({index for step in groups for group in step for index, _ in group})
        passes.append(forward_passes(rows, [len(trunk.prompts.general[index]) for index in rows], 0, 1, trunk.batching))
    mine = passes[trunk.ranks.rank]
    mine += [mine[-1]] * (max(map(len, passes)) - len(mine))
    return [[index for index, _ in group] for group in mine]


def _note_progress(state: dict[str, Any], row: dict[str, Any], stage) -> None:
    """Keep the best gap, and set `stopped_because` when the target or the end is reached or the gap stopped growing."""
    step = row["step"]
    if "gap" in row:
        state["last"] = {name: row[name] for name in ("gap", "auc", "within", "across", "drift")}
        if row["gap"] > state["best_gap"]:
            state["best_gap"], state["best_step"] = row["gap"], step
        if row["gap"] >= stage.target_gap:
            state["stopped_because"] = f"the held-out gap reached {row['gap']:.3f} (target {stage.target_gap})"
        elif step - state["best_step"] >= stage.patience:
            state["stopped_because"] = (
                f"the gap has not grown since step {state['best_step']} ({state['best_gap']:.3f})"
            )
    if step == stage.max_steps and "stopped_because" not in state:
        state["stopped_because"] = f"max_steps = {stage.max_steps} reached at gap {row['gap']:.3f}"
