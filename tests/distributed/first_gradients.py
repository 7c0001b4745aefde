"""Launched by test_gradients.py with N ranks: the gradients of the first step of both stages, for each ZeRO stage and
micro-batch, computed by the stages' step functions. Rank 0 writes them to OUT."""

import json
import os
import sys
from functools import cache
from pathlib import Path

from dcr_ds.cli import quiet_libraries
from dcr_ds.engine.launcher import set_environment

set_environment()
quiet_libraries()

import torch

from dcr_ds.align.objective import WithReference, encode_samples, objective_of
from dcr_ds.align.reference import compute
from dcr_ds.align.state import build_align
from dcr_ds.align.step import train_step as align_step
from dcr_ds.data.load import load_data
from dcr_ds.engine import distributed as process
from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.engine.machine import Machine
from dcr_ds.engine.resolve import resolve
from dcr_ds.models import likelihood
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.recipe import load_recipe
from dcr_ds.refine.prompts import encode_refine_prompts
from dcr_ds.refine.state import build_refine
from dcr_ds.refine.step import train_step as refine_step

BETA1 = 0.9
if int(os.environ["WORLD_SIZE"]) > 1:  # the gradient of the head in blocks, as for 70B; on one rank, whole
    likelihood.HELD_BYTES, likelihood.BLOCK_BYTES = 0, 20_000
OTHER_LOSSES = ("supcon", "infonce", "ntxent", "triplet")


def taken_gradients(engine, ranks):
    """Full gradients as AdamW received them: after its first step the first moment is (1 − β₁) times the gradient."""
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


def settings_of(
    model: str, zero: int = 0, micro: int = 1, loss: str = "circle", packing: bool = False, method: str = "sft"
) -> dict:
    return {
        "model.source": model,
        "model.freeze_router": False,
        "deepspeed": f"ds_configs/zero{zero}.json",
        "refine.layer": 2,
        "refine.loss": loss,
        "refine.pairs": "matched",
        "refine.global_batch": 8,
        "refine.retain_batch": 5,
        "refine.retain_weight": 3,
        "refine.max_grad_norm": 1e9,
        "refine.scale": 8,
        "refine.max_steps": 2,
        "refine.micro_batch": micro,
        "align.global_batch": 8,
        "align.micro_batch": micro,
        "align.max_grad_norm": 1e9,
        "stages": "[refine, align]",
        "refine.packing": packing,
        "align.packing": packing,
        "refine.packed_length": 700,
        "align.packed_length": 600 if method in ("sft", "kto") else 1100,
        "align.method": method,
        "align.loss_on": "all" if method == "orpo" else "answers",
        "data.preferences.rows": 11,
    }


def load(model: str, ranks, *settings, **more):
    """The resolved recipe of `settings_of`."""
    values = settings_of(model, *settings, **more)
    recipe = load_recipe(None, [(field, str(value)) for field, value in values.items()])
    return resolve(recipe, model_config(Path(model)), Machine.detect(ranks))[0]


@cache
def read(model: str, method: str):
    """The prompts of stage 1 and the samples of stage 2, the same in every run of a method."""
    recipe = load_recipe(None, [(field, str(value)) for field, value in settings_of(model, method=method).items()])
    data, tokenizer = load_data(recipe), load_tokenizer(Path(model))
    objective = objective_of(recipe, encode_samples(recipe, data, tokenizer))
    return encode_refine_prompts(recipe, data, tokenizer), objective


def refine_results(model: str, zero: int, micro: int, loss: str, ranks, packing: bool = False) -> dict:
    recipe = load(model, ranks, zero, micro, loss, packing)
    prompts, _ = read(model, "sft")
    state = build_refine(recipe, Path(model), prompts, ranks)
    first = refine_step(state, 0)["loss"]
    gradients = taken_gradients(state.engine, ranks)
    # the retain term has no gradient at the original model
    second = refine_step(state, 1)["loss"]
    name = "refine" if loss == "circle" else f"refine {loss}"
    run = f"zero{zero}/packed" if packing else f"zero{zero}/micro{micro}"
    return {f"{name}/{run}": gradients, f"{name}/{run}/loss": first, f"{name} second step/{run}/loss": second}


def align_results(model: str, zero: int, micro: int, ranks, packing: bool = False) -> dict:
    """SFT; of a mixture of experts with the load-balancing loss."""
    recipe = load(model, ranks, zero, micro, packing=packing)
    _, objective = read(model, "sft")
    state = build_align(recipe, Path(model), objective, ranks)
    row = align_step(state, 0)
    name = "balance" if state.balance else "align"
    run = f"zero{zero}/packed" if packing else f"zero{zero}/micro{micro}"
    gradients = taken_gradients(state.engine, ranks)
    return {f"{name}/{run}": gradients, f"{name}/{run}/loss": row.get("router_aux_loss", row["loss"])}


def preference_results(model: str, method: str, zero: int, micro: int, ranks, packing: bool = False) -> dict:
    """Eleven pairs, of which eight (of KTO eight answers) are in the step; the reference is another model, so that no
    margin is zero, and KTO's KL is not clamped."""
    recipe = load(model, ranks, zero, micro, packing=packing, method=method)
    _, objective = read(model, method)
    state = build_align(recipe, Path(model), objective, ranks)
    name = f"{method}/zero{zero}/packed" if packing else f"{method}/zero{zero}/micro{micro}"
    results = {}
    if isinstance(objective, WithReference):
        reference = compute(state.engine, objective.read_by_reference(), state.batching, ranks)
        objective.take_reference(reference * 1.01)
        results[f"{name}/reference"] = reference.flatten().tolist()
    row = align_step(state, 0)
    results |= {f"{name}/{figure}": value for figure, value in row.items() if figure not in ("step_tokens",)}
    return results | {name: taken_gradients(state.engine, ranks)}


def main(model: str, mixture: str, out: str, zero_stages: list[int], micro_batches: list[int]) -> None:
    """Circle loss and SFT for every ZeRO stage and micro-batch; packed and with the other losses for the last."""
    ranks = process.start()
    results = {}
    for zero in zero_stages:
        for micro in micro_batches:
            results |= refine_results(model, zero, micro, "circle", ranks)
            results |= align_results(model, zero, micro, ranks)
    results |= refine_results(model, zero, 1, "circle", ranks, packing=True)
    results |= align_results(model, zero, 1, ranks, packing=True)
    results |= align_results(mixture, zero, micro, ranks)
    results |= align_results(mixture, zero_stages[0], 1, ranks, packing=True)
    for method in ("dpo", "kto", "orpo", "simpo"):
        results |= preference_results(model, method, zero, micro, ranks)
        results |= preference_results(model, method, zero_stages[0], 1, ranks, packing=True)
    for loss in OTHER_LOSSES:
        results |= refine_results(model, zero, micro, loss, ranks)
    if ranks.is_main:
        torch.save(results, out)
    process.close()


if __name__ == "__main__":
    main(*sys.argv[1:4], json.loads(sys.argv[4]), json.loads(sys.argv[5]))
