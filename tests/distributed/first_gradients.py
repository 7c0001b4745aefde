"""Launched by test_gradients.py with N ranks: the gradients of the first step of both stages, for each ZeRO stage and
micro-batch, through the project's own step functions. Rank 0 writes them to OUT."""

import json
import sys
from pathlib import Path

from dcr_ds.cli import _quiet
from dcr_ds.engine.ranks import set_environment

set_environment()
_quiet()

import deepspeed
import torch

from dcr_ds.align import loop as align_loop
from dcr_ds.align.mix import encode_mix
from dcr_ds.data.load import load_data
from dcr_ds.engine import ranks as process
from dcr_ds.engine.resolve import resolve
from dcr_ds.models.chat import load_tokenizer
from dcr_ds.models.source import model_config
from dcr_ds.recipe import load_recipe
from dcr_ds.refine import loop as refine_loop
from dcr_ds.refine.prompts import encode_refine_prompts

BETA1 = 0.9


def taken_gradients(engine, ranks):
    """Whole gradients as AdamW saw them: after its first step the first moment is (1 − β₁) times the gradient."""
    gradients = {}
    engine.step()
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_optimization_stage():
            moment = deepspeed.utils.safe_get_full_optimizer_state(parameter, "exp_avg")
        else:
            moment = engine.optimizer.state[parameter]["exp_avg"]
        gradients[name] = moment.detach().cpu().clone() / (1 - BETA1)
    return gradients


def main(model: str, out: str, zero_stages: list[int], micro_batches: list[int]) -> None:
    ranks = process.start(timeout_minutes=2)
    results = {}
    for zero in zero_stages:
        for micro in micro_batches:
            recipe = load_recipe(
                None,
                [
                    ("model.source", model),
                    ("deepspeed", f"ds_configs/zero{zero}.json"),
                    ("refine.layer", "2"),
                    ("refine.pairs", "matched"),
                    ("refine.global_batch", "8"),
                    ("refine.retain_batch", "5"),
                    ("refine.retain_weight", "3"),
                    ("refine.max_grad_norm", "1e9"),
                    ("refine.scale", "8"),
                    ("refine.max_steps", "2"),
                    ("refine.micro_batch", str(micro)),
                    ("align.global_batch", "8"),
                    ("align.micro_batch", str(micro)),
                    ("align.max_grad_norm", "1e9"),
                    ("stages", "[refine, align]"),
                ],
            )
            data = load_data(recipe)
            source = Path(model)
            recipe, settings = resolve(recipe, model_config(source), ranks.device, ranks.world_size)
            tokenizer = load_tokenizer(source)

            prompts = encode_refine_prompts(recipe, data, tokenizer)
            trunk = refine_loop.build_trunk(recipe, settings, source, prompts, ranks)
            # away from the original model, where the retain term has no gradient
            row = refine_loop.train_step(trunk, 0)
            results[f"refine/zero{zero}/micro{micro}/loss"] = row["loss"]
            results[f"refine/zero{zero}/micro{micro}"] = taken_gradients(trunk.engine, ranks)
            row = refine_loop.train_step(trunk, 1)
            results[f"refine second step/zero{zero}/micro{micro}/loss"] = row["loss"]

            mix = encode_mix(recipe.align, data, tokenizer, recipe.seed)
            engine = align_loop.build_engine_for(recipe, settings, source, 4, ranks)
            row = align_loop.train_step(engine, mix, list(range(8)), micro, tokenizer.pad_token_id, ranks)
            results[f"align/zero{zero}/micro{micro}/loss"] = row["loss"]
            results[f"align/zero{zero}/micro{micro}"] = taken_gradients(engine, ranks)
    if ranks.is_main:
        torch.save(results, out)
    process.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4]))
