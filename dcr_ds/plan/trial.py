"""Real steps of a training stage on random tokens, with the engine, batching and loss of a run.

`dcr-ds plan --measure` calibrates with their time and memory; benchmarks/plan_check.py compares their bytes with plans.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dcr_ds.align.labelled import Labelled
from dcr_ds.align.mix import Mix
from dcr_ds.align.objective import WithReference, objective_of
from dcr_ds.align.pairs import Pair, Pairs
from dcr_ds.align.reference import compute
from dcr_ds.align.sft import SftObjective
from dcr_ds.align.state import build_align
from dcr_ds.align.step import train_step as align_step
from dcr_ds.data.records import Prompt
from dcr_ds.data.sampler import ContrastiveSampler
from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.chat import Encoded
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.recipe import Recipe
from dcr_ds.refine.prompts import RefinePrompts
from dcr_ds.refine.state import build_refine
from dcr_ds.refine.step import train_step as refine_step

MAX_STEPS = 4.0  # of a trial
Backward = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """Rows of random tokens, of `tokens` tokens or, in turn, of up to `ragged` − 1 fewer."""

    tokens: int
    ragged: int = 1

    def of(self, count: int, vocabulary: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(vocabulary, (count, self.tokens), generator=generator).tolist()
        return [row[: self.tokens - index % self.ragged] for index, row in enumerate(rows)]


def refine_trial(recipe: Recipe, source: Path, rows: Rows, ranks: Ranks):
    """The engine of stage 1, and a function that accumulates the gradients of a step (numbered from 0)."""
    stage = recipe.refine
    half = [Prompt(str(index), "", pair=str(index)) for index in range(stage.global_batch // 2)]
    general = rows.of(stage.global_batch + stage.max_steps * stage.retain_batch, model_config(source)["vocab_size"])
    tokens = {(label, prompt.id): general.pop() for label in (0, 1) for prompt in half}
    sampler = ContrastiveSampler(half, half, stage.global_batch, stage.pairs, recipe.seed)
    state = build_refine(recipe, source, RefinePrompts(sampler, tokens, 0, [], general, general[:1]), ranks)
    return state.engine, partial(refine_step, state)


def align_trial(recipe: Recipe, source: Path, rows: Rows, ranks: Ranks):
    """Stage 2 by the method of the recipe, with all tokens of a conversation but the first supervised."""
    if recipe.align.method != "sft":
        return preference_trial(recipe, source, rows, ranks)
    samples = [Encoded(ids, 1) for ids in rows.of(recipe.align.global_batch, model_config(source)["vocab_size"])]
    objective = SftObjective(Mix(samples, [str(index) for index in range(len(samples))], 0))
    state = build_align(recipe, source, objective, ranks)
    return state.engine, partial(align_step, state)


def preference_trial(recipe: Recipe, source: Path, rows: Rows, ranks: Ranks):
    """Stage 2 on preferences, with references for as many steps as are taken: an epoch is one step."""
    recipe = recipe.model_copy(update={"align": recipe.align.model_copy(update={"epochs": MAX_STEPS})})
    batch, vocabulary = recipe.align.global_batch, model_config(source)["vocab_size"]
    answers = [Encoded(ids, 1) for ids in rows.of(2 * batch if recipe.align.is_paired else batch, vocabulary)]
    samples: Pairs | Labelled
    if recipe.align.is_paired:
        samples = Pairs([Pair(*two) for two in zip(answers[::2], answers[1::2], strict=True)], [])
    else:
        samples = Labelled(answers, [index % 2 == 0 for index in range(batch)], [], rows.tokens)
    objective = objective_of(recipe, samples)
    state = build_align(recipe, source, objective, ranks)
    if isinstance(objective, WithReference):
        objective.take_reference(compute(state.engine, objective.read_by_reference(), state.batching, ranks))
    return state.engine, partial(align_step, state)


TRIALS: dict[str, Callable[..., tuple[deepspeed.DeepSpeedEngine, Backward]]] = {
    "refine": refine_trial,
    "align": align_trial,
}


@dataclass(frozen=True)
class StepFigures:
    """Figures of a step.

    Attributes:
        seconds: duration.
        tokens: number of tokens trained on.
        peak: peak bytes of live tensors beyond those before the engine was built; 0: not measured.
    """

    seconds: float
    tokens: int
    peak: int


def second_step(stage: str, recipe: Recipe, source: Path, rows: Rows, ranks: Ranks, follow: bool) -> StepFigures:
    """Build a stage and run two steps; the first warms up, the second is measured.

    Args:
        stage: refine or align.
        follow: measure the memory; on a CPU this intercepts every operator, which is slow.
    """
    on_gpu = ranks.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else LiveBytes().alive if follow else 0
    engine, backward = TRIALS[stage](recipe, source, rows, ranks)
    backward(0)
    engine.step()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    live = LiveBytes() if follow and not on_gpu else None
    started = time.perf_counter()
    with live or nullcontext():
        tokens = backward(1)["step_tokens"]
        engine.step()
        if on_gpu:
            torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if on_gpu else live.peak if live else before
    return StepFigures(seconds, tokens, peak - before)
