"""A measurement changes the plan: the rate changes the time, the factor the rehearsed memory; the states stay."""

from dataclasses import replace

import pytest
from tiny import make_model

from dcr_ds.engine.resolve import resolve
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.plan.choose import Cluster, Lengths, Stage, planned, zero_of
from dcr_ds.plan.clock import GPUS
from dcr_ds.recipe import load_recipe


def test_plan_uses_measured_memory_and_rate(tmp_path):
    folder = make_model(tmp_path / "tiny", tied=False)
    cluster = Cluster(1, 1, 80, GPUS["h100"], on_gpu=False)
    recipe = planned(load_recipe(None, [("stages", "[align]")]), folder, cluster)
    measured = replace(cluster, memory_factor=2.0, rates=replace(cluster.rates, flops=cluster.rates.flops / 10))
    before, after = (
        Stage(recipe, folder, "align", where, Lengths(64, 64)).at(zero_of(0), 4) for where in (cluster, measured)
    )
    assert after.memory.activations == 2 * before.memory.activations > 0
    assert after.memory.backward - before.memory.backward == before.memory.rehearsed
    assert (after.memory.states, after.memory.step) == (before.memory.states, before.memory.step)
    assert after.time.compute == pytest.approx(10 * before.time.compute)


def test_a_plan_resolves_auto_like_training_on_the_same_machine(tmp_path):
    folder = make_model(tmp_path / "tiny", tied=False)
    recipe = load_recipe(None, [("refine.layer", "auto")])
    for on_gpu in (False, True):
        cluster = Cluster(4, 4, 80, GPUS["h100"], on_gpu=on_gpu)
        trained, _ = resolve(recipe, model_config(folder), cluster.machine)
        plan = planned(recipe, folder, cluster)
        assert plan.model == trained.model and plan.refine.layer == trained.refine.layer
        assert plan.deepspeed == trained.deepspeed
        assert plan.refine.micro_batch == plan.align.packed_length == "auto"  # the plan chooses these by memory
