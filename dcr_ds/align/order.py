"""The samples that each step of stage 2 trains on: a function of seed, step and number of samples alone."""

import math

from dcr_ds.data.sampler import draw
from dcr_ds.recipe import Recipe


def num_steps(epochs: float, num_samples: int, global_batch: int) -> int:
    """Optimizer steps of a stage; the last one is filled up from the order of the next epoch."""
    return max(1, math.ceil(round(epochs * num_samples / global_batch, 6)))  # 1.1 · 10 is above 11 in floats


def rows_of_step(recipe: Recipe, num_samples: int, step: int) -> list[int]:
    """Indices of the samples in a step (steps count from 0)."""
    batch = recipe.align.global_batch
    return draw(f"{recipe.seed}/align", num_samples, step * batch, batch)
