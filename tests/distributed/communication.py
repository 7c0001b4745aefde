"""Launched by test_communication.py with 4 ranks, as two nodes of two: two steps of both stages under ZeRO-3 with
different communication. Rank 0 writes losses and gradients to OUT."""

import os
import sys
from collections import Counter
from pathlib import Path

os.environ["LOCAL_WORLD_SIZE"] = "2"

import first_gradients as gradients
import torch
from deepspeed.runtime.zero import partition_parameters

from dcr_ds.engine import distributed as process
from dcr_ds.engine.overlap import Streams, compare
from dcr_ds.plan.memory import tensors_of
from dcr_ds.plan.states import Zero, states
from dcr_ds.refine.measure import measure
from dcr_ds.refine.step import Contrast, is_one_pass

CASES: dict = {
    "plain": ("3", {"overlap_comm": False}),
    "overlap": ("3", {"overlap_comm": True}),
    "hpz": ("3_hpz", {}),
    "joint": ("3", {}),  # packed rows that take both terms of stage 1
}


def run(model: str, ranks, name: str) -> dict:
    file, changes = CASES[name]
    recipe = gradients.load(model, ranks, file, 2, packing=name == "joint")
    # without persistent parameters, so that also those of a tiny model are gathered
    changes = changes | {"stage3_param_persistence_threshold": 0}
    config = recipe.deepspeed | {"zero_optimization": recipe.deepspeed["zero_optimization"] | changes}
    refine = recipe.refine.model_copy(update={"packed_length": 4096 if name == "joint" else 700})
    recipe = recipe.model_copy(update={"deepspeed": config, "refine": refine})
    prompts, objective = gradients.read(model, "sft")
    results = {"partition": config["zero_optimization"].get("zero_hpz_partition_size", 1)}
    state = gradients.build_refine(recipe, Path(model), prompts, ranks)
    if name == "overlap":  # as the first step of a run does it on GPUs; it must leave no trace
        results["equal"] = compare(state.engine, Streams(state.engine), lambda: gradients.refine_step(state, 0), ranks)
    results["joint"] = [is_one_pass(state, Contrast.of(state, step), step) for step in (0, 1)]
    results["secondary"] = secondary_bytes(state.engine)
    planned = states(tensors_of(recipe, Path(model), "refine"), Zero.of(config), ranks.world_size, False)
    results["planned"] = planned.secondary
    results |= two_steps("refine", state, gradients.refine_step, ranks)
    GATHERED.bytes.clear()
    results["figures"] = measure(state)
    results["measure/gathered"] = dict(GATHERED.bytes)
    if name == "joint":
        return results
    state = gradients.build_align(recipe, Path(model), objective, ranks)
    return results | two_steps("align", state, gradients.align_step, ranks)


class Gathered:
    """The bytes that DeepSpeed gathers, by the number of ranks that take part."""

    def __init__(self):
        self.bytes = Counter()
        self.gather = partition_parameters._dist_allgather_fn
        partition_parameters._dist_allgather_fn = self

    def __call__(self, own, whole, group=None):
        self.bytes[torch.distributed.get_world_size(group)] += whole.numel() * whole.element_size()
        return self.gather(own, whole, group)


GATHERED = Gathered()


def two_steps(stage: str, state, step, ranks) -> dict:
    losses = [step(state, 0)["loss"]]
    taken = gradients.taken_gradients(state.engine, ranks)
    GATHERED.bytes.clear()
    losses.append(step(state, 1)["loss"])
    gathered = dict(GATHERED.bytes)
    state.engine.step()
    losses.append(step(state, 1)["loss"])
    return {f"{stage}/losses": losses, f"{stage}/gradients": taken, f"{stage}/gathered": gathered}


def secondary_bytes(engine) -> int:
    parameters = [parameter.ds_secondary_tensor for parameter in engine.module.parameters()]
    return sum(part.numel() * part.element_size() for part in parameters if part is not None)


def main(model: str, out: str) -> None:
    ranks = process.start()
    results = {name: run(model, ranks, name) for name in CASES}
    if ranks.is_main:
        torch.save(results, out)
    process.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
