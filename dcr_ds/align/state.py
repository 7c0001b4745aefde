"""The state of stage 2: the engine under training, and what a step needs."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dcr_ds.align.balance import RouterBalance
from dcr_ds.align.objective import Objective
from dcr_ds.align.order import num_steps, rows_of_step
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.build import build_stage
from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.likelihood import Likelihood
from dcr_ds.models.load import load_causal_lm
from dcr_ds.recipe import Recipe


@dataclass
class AlignState:
    engine: deepspeed.DeepSpeedEngine
    recipe: Recipe
    objective: Objective
    batching: Batching
    ranks: Ranks
    total_steps: int
    balance: RouterBalance | None = None

    @property
    def model(self):
        """The causal language model inside the engine."""
        return self.engine.module.model

    def is_measured(self, step: int) -> bool:
        """Whether the refusal log-odds are measured after a step."""
        return step % self.recipe.align.measure_every == 0 or step == self.total_steps

    def rows(self, step: int) -> list[int]:
        """Indices of the samples in a step (steps count from 0)."""
        return rows_of_step(self.recipe, len(self.objective.data.samples), step)

    def sample_ids(self, step: int) -> list[str]:
        return [self.objective.data.ids[row] for row in self.rows(step)]


def build_align(recipe: Recipe, source: Path, objective: Objective, ranks: Ranks) -> AlignState:
    """Load the source model and build its engine. All ranks."""
    stage = recipe.align
    total_steps = num_steps(stage.epochs, len(objective.data.samples), stage.global_batch)
    backend, coefficient = stage.loss_backend, stage.router_aux_loss_coef
    assert backend != "auto" and coefficient != "auto"  # resolved
    engine = build_stage(
        "align",
        recipe,
        partial(load_causal_lm, source),
        total_steps,
        ranks,
        wrap=lambda model: Likelihood(model, backend, with_routers=coefficient > 0),
    )
    batching = Batching.of(stage)
    balance = RouterBalance(engine, objective.data, batching.packed, ranks, coefficient) if coefficient else None
    return AlignState(engine, recipe, objective, batching, ranks, total_steps, balance)
