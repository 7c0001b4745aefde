"""The state of stage 1: the trunk under training, and what a step and a measurement need."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed
from dcr_kernels import ContrastiveLoss

from dcr_ds.data.sampler import draw
from dcr_ds.engine.batching import Batching, forward_passes
from dcr_ds.engine.build import build_stage
from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.engine.distributed import Ranks, gather_objects
from dcr_ds.models.trunk import load_trunk
from dcr_ds.progress import heartbeat
from dcr_ds.recipe import Recipe
from dcr_ds.refine.embed import shards
from dcr_ds.refine.objective import contrastive_loss
from dcr_ds.refine.prompts import RefinePrompts
from dcr_ds.refine.retain import Anchors


@dataclass
class RefineState:
    """
    Attributes:
        anchors, held_out_anchors: original activations of the general rows trained on and of those measured.
        group: the process group that the contrastive loss gathers over; None with one rank.
    """

    engine: deepspeed.DeepSpeedEngine
    recipe: Recipe
    prompts: RefinePrompts
    batching: Batching
    ranks: Ranks
    loss: ContrastiveLoss
    group: Any = None
    anchors: Anchors = field(default_factory=Anchors)
    held_out_anchors: Anchors = field(default_factory=Anchors)

    @property
    def total_steps(self) -> int:
        return self.recipe.refine.max_steps

    @property
    def joins_passes(self) -> bool:
        """Whether prompts and conversations share forward passes: where each pass gathers the trunk from other ranks.

        Only packed rows: padding prompts to the length of conversations would cost more than a gather within a node.
        """
        return self.batching.packed and self.ranks.world_size > 1 and self.engine.zero_optimization_stage() == 3

    @property
    def measured_rows(self) -> list[list[int]]:
        """The held-out prompts, then the held-out conversations."""
        return [*(prompt.ids for prompt in self.prompts.held_out), *self.prompts.held_out_general]

    def sample_ids(self, step: int) -> list[str]:
        return [prompt.id for prompt, _ in self.prompts.sampler.batch(step)]

    def retain_rows(self, step: int) -> list[int]:
        """Indices of the general rows of a step, counted from 0."""
        batch = self.recipe.refine.retain_batch
        return draw(f"{self.recipe.seed}/retain", len(self.prompts.general), step * batch, batch)

    def retain_passes(self, step: int) -> list[Sequence[tuple[int, bool]]]:
        """This rank's forward passes over the general rows of a step, as (row, alive)."""
        rows = self.retain_rows(step)
        lengths = [len(self.prompts.general[row]) for row in rows]
        return forward_passes(rows, lengths, self.ranks.rank, self.ranks.world_size, self.batching)

    def num_retain_tokens(self, step: int) -> int:
        """Tokens of the general rows of a step, over all ranks."""
        return sum(len(self.prompts.general[row]) for row in self.retain_rows(step))

    def anchor_passes(self) -> list[list[int]]:
        """Forward passes over every general row that this rank will train on, as row indices."""
        steps = (self.retain_passes(step) for step in range(self.total_steps))
        rows = sorted({row for groups in steps for group in groups for row, _ in group})
        passes = forward_passes(rows, [len(self.prompts.general[row]) for row in rows], 0, 1, self.batching)
        return [[row for row, _ in group] for group in passes]


def build_refine(recipe: Recipe, source: Path, prompts: RefinePrompts, ranks: Ranks) -> RefineState:
    """Load the trunk of the source model, build its engine, and keep the original activations. All ranks."""
    stage = recipe.refine
    engine = build_stage("refine", recipe, partial(load_trunk, source, int(stage.layer)), stage.max_steps, ranks)
    group = torch.distributed.group.WORLD if ranks.world_size > 1 else None
    loss = contrastive_loss(stage, group)
    state = RefineState(engine, recipe, prompts, Batching.of(stage), ranks, loss, group)
    _keep_original_activations(state)
    return state


def _keep_original_activations(state: RefineState) -> None:
    """Fill the anchors, before anything is trained and before a checkpoint is loaded."""
    engine, prompts, packed, device = state.engine, state.prompts, state.batching.packed, state.ranks.device
    if state.recipe.refine.retain_weight:
        passes = state.anchor_passes()
        number = max(gather_objects(len(passes), state.ranks))  # ZeRO-3 needs as many on every rank
        for indices in passes + passes[-1:] * (number - len(passes)):
            state.anchors.keep(engine, prompts.general, indices, packed, device)
            heartbeat("refine, activations of the original model")
    rows = state.measured_rows if state.joins_passes else prompts.held_out_general
    for shard in shards(rows, state.batching, state.ranks):
        state.held_out_anchors.keep(engine, rows, [index for index, _ in shard], packed, device)
