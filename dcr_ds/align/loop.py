"""Stage 2: safety alignment by supervised fine-tuning on general conversations and safe refusals, or by DPO on pairs.

Starts from the refined model, or from the base where there was no stage 1 (the STL baseline), and is the same in
both: DCR asks nothing of it.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dcr_ds.align.dpo import Pairs, dpo_step, encode_pairs
from dcr_ds.align.mix import Mix, encode_mix
from dcr_ds.align.reference import reference_log_probs
from dcr_ds.align.sft import summed_loss, supervised_tokens
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
from dcr_ds.models.adapters import add_lora, write_trained
from dcr_ds.models.chat import load_tokenizer
from dcr_ds.models.fused import fuse_blocks
from dcr_ds.models.likelihood import Likelihood
from dcr_ds.models.load import DTYPES, load_causal_lm
from dcr_ds.models.varlen import stage_attention
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import StageFolder


def align(recipe: Recipe, source: Path, data: RunData, folder: Path, ranks: Ranks) -> None:
    """Run stage 2 from `source` into `folder`: metrics.jsonl, checkpoints/, model/, summary.json. All ranks.

    Raises:
        Stopped: a signal arrived; the state is saved.
        Diverged: the loss is no longer finite; the last checkpoint is kept.
    """
    started = time.monotonic()
    stage = recipe.align
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(source, recipe.model.chat_template)
    by_preferences = stage.method == "dpo"
    samples = encode_samples(recipe, data, tokenizer)
    for note in samples.notes:
        print_on_main(ranks, note)
    total_steps = num_steps(stage.epochs, len(samples.samples), stage.global_batch)
    engine = build_engine_for(recipe, source, total_steps, ranks)
    batching = Batching.of(stage)
    if by_preferences:
        reference = reference_log_probs(
            engine, samples, batching, recipe.model, source, StageFolder(folder).reference, ranks
        )
    with Session("align", recipe, engine, folder, total_steps, ranks, started) as session:
        while (step := session.step) < total_steps:
            torch.manual_seed(recipe.seed + 1_000_003 * step + ranks.rank)  # adapter dropout, on resume too
            rows = draw(f"{recipe.seed}/align", len(samples.samples), step * stage.global_batch, stage.global_batch)
            if by_preferences:
                row = dpo_step(engine, samples, reference, rows, batching, stage.dpo, ranks)
            else:
                row = train_step(engine, samples, rows, batching, ranks)
            session.take_step(row, [samples.ids[index] for index in rows])
            session.log(row)
            session.save_or_stop(is_last=session.step == total_steps)
    _export(engine, source, folder, ranks)
    session.finish(samples.counts | {"stopped_because": f"{stage.epochs:g} epochs done"})


def encode_samples(recipe: Recipe, data: RunData, tokenizer: PreTrainedTokenizerBase) -> Mix | Pairs:
    """The samples of one epoch, by the method of the stage."""
    if recipe.align.method == "dpo":
        return encode_pairs(data.preferences, recipe.align.max_length, tokenizer)
    return encode_mix(recipe.align, data, tokenizer, recipe.seed)


def num_steps(epochs: float, samples: int, global_batch: int) -> int:
    """Optimizer steps of a stage; the last one goes over into the next epoch's order rather than being short."""
    return max(1, math.ceil(epochs * samples / global_batch))


def train_step(engine, mix: Mix, rows: list[int], batching: Batching, ranks: Ranks) -> dict[str, Any]:
    """Accumulate the gradients of one optimizer step: the mean over all its supervised tokens. All ranks."""
    samples = [mix.samples[index] for index in rows]
    tokens = sum(supervised_tokens(sample) for sample in samples)  # of all ranks, before the first backward
    lengths = [len(sample.ids) for sample in samples]
    total = torch.zeros((), device=ranks.device)
    for group in forward_passes(samples, lengths, ranks.rank, ranks.world_size, batching):
        batch, alive = zip(*group, strict=True)
        summed = summed_loss(engine, batch, alive, batching.packed, ranks.device)
        total += summed.detach()
        # DeepSpeed averages over the ranks; the mean is over the tokens of all of them
        engine.backward(summed * (ranks.world_size / tokens), scale_wrt_gas=False)
    loss = sum_over_ranks(total, ranks).item() / tokens
    return {"loss": loss, "supervised_tokens": tokens, "step_tokens": sum(lengths)}


def build_engine_for(recipe: Recipe, source: Path, total_steps: int, ranks: Ranks):
    stage = recipe.align
    config = stage_config(recipe.deepspeed, stage, recipe.model.dtype, ranks)
    quantize, dtype = recipe.model.quantize, DTYPES[recipe.model.dtype]
    attention = stage_attention(recipe.model, stage.packing, ranks.device)
    with sharded_loading(config, quantize):
        device = None if quantize == "none" else ranks.device
        model = load_causal_lm(source, dtype, attention, device, quantize)
    fuse_blocks(model, recipe.model.kernels)
    if stage.adapter == "lora":
        torch.manual_seed(recipe.seed)  # the same initial adapter on all ranks
        model = add_lora(model, stage.lora, "align.lora")
    model.train()
    if recipe.model.activation_checkpointing:
        checkpoint_activations(model)
    return build_engine(Likelihood(model, stage.loss_backend), stage, config, stage.schedule, total_steps, ranks)


def _export(engine, source: Path, folder: Path, ranks: Ranks) -> None:
    """Write folder/model, and folder/adapter with LoRA. All ranks."""
    weights = {name.removeprefix("model."): weight for name, weight in trained_weights(engine, ranks).items()}
    if ranks.is_main:
        write_trained(engine.module.model, weights, source, StageFolder(folder))
    barrier(ranks)
