"""Real steps of a training stage on rows of random tokens, by the engine, the batching and the loss of a run.

`dcr-ds plan --measure` calibrates with their time and memory; benchmarks/plan_check.py compares all of their bytes.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine

from dcr_ds.align import loop as align_loop
from dcr_ds.align.dpo import Pair, Pairs, dpo_step
from dcr_ds.align.mix import Mix
from dcr_ds.align.reference import compute
from dcr_ds.data.records import Prompt
from dcr_ds.data.sampler import ContrastiveSampler
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.chat import Encoded
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.recipe import Recipe
from dcr_ds.refine import loop as refine_loop
from dcr_ds.refine.prompts import RefinePrompts

Backward = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """Rows of random tokens: of so many tokens, or of up to `ragged` − 1 less, in turn."""

    tokens: int
    ragged: int = 1

    def of(self, count: int, vocabulary: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(vocabulary, (count, self.tokens), generator=generator).tolist()
        return [row[: self.tokens - index % self.ragged] for index, row in enumerate(rows)]


def refine_trial(recipe: Recipe, source: Path, rows: Rows, ranks: Ranks):
    """Stage 1: its engine, and what accumulates the gradients of a step, numbered from 0."""
    stage = recipe.refine
    half = [Prompt(str(index), "", pair=str(index)) for index in range(stage.global_batch // 2)]
    made = rows.of(stage.global_batch + stage.max_steps * stage.retain_batch, model_config(source)["vocab_size"])
    tokens = {(label, prompt.id): made.pop() for label in (0, 1) for prompt in half}
    sampler = ContrastiveSampler(half, half, stage.global_batch, stage.pairs, recipe.seed)
    prompts = RefinePrompts(sampler, tokens, 0, [], made, made[:1])
    trunk = refine_loop.build_trunk(recipe, source, prompts, ranks)
    return trunk.engine, lambda step: refine_loop.train_step(trunk, step)


def align_trial(recipe: Recipe, source: Path, rows: Rows, ranks: Ranks):
    """Stage 2 by demonstrations, every token of an answer but the first supervised."""
    stage = recipe.align
    samples = [Encoded(ids, 1) for ids in rows.of(stage.global_batch, model_config(source)["vocab_size"])]
    mix = Mix(samples, [str(index) for index in range(len(samples))], 0)
    engine = align_loop.build_engine_for(recipe, source, 2, ranks)
    return engine, lambda step: align_loop.train_step(engine, mix, list(range(len(samples))), Batching.of(stage), ranks)


def dpo_trial(recipe: Recipe, source: Path, rows: Rows, ranks: Ranks):
    """Stage 2 by preferences."""
    stage = recipe.align
    answers = [Encoded(ids, 1) for ids in rows.of(2 * stage.global_batch, model_config(source)["vocab_size"])]
    pairs = Pairs([Pair(*two) for two in zip(answers[::2], answers[1::2], strict=True)], [])
    engine = align_loop.build_engine_for(recipe, source, 2, ranks)
    batching, numbers = Batching.of(stage), list(range(len(pairs.samples)))
    reference = compute(engine, pairs, batching, ranks)
    return engine, lambda step: dpo_step(engine, pairs, reference, numbers, batching, stage.dpo, ranks)


TRIALS: dict[str, Callable[..., tuple[DeepSpeedEngine, Backward]]] = {
    "refine": refine_trial,
    "align": align_trial,
    "dpo": dpo_trial,
}


@dataclass(frozen=True)
class Measured:
    """Attributes:
    seconds, tokens: of the step, and what was trained on in it.
    peak: the most bytes of tensors alive in it that were not before the engine was built; 0: not followed.
    """

    seconds: float
    tokens: int
    peak: int


def second_step(kind: str, recipe: Recipe, source: Path, rows: Rows, ranks: Ranks, follow: bool) -> Measured:
    """Build a stage and take two steps, of which the first warms up and the second is measured.

    Args:
        kind: refine, align or dpo.
        follow: note the memory; on a CPU every operator is watched for it, which takes time.
    """
    on_gpu = ranks.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else LiveBytes().alive if follow else 0
    engine, backward = TRIALS[kind](recipe, source, rows, ranks)
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
    return Measured(seconds, tokens, peak - before)
