"""What was measured changes the plan: the rate its time, the factor what was rehearsed, and neither the states."""

from dataclasses import replace

import pytest
from tiny import make_model

from dcr_ds.plan.choose import Lengths, Machine, Stage, planned, zero_of
from dcr_ds.plan.clock import GPUS
from dcr_ds.recipe import load_recipe


def test_measured_memory_and_rate_are_planned_with(tmp_path):
    folder = make_model(tmp_path / "tiny", tied=False)
    recipe = planned(load_recipe(None, [("stages", "[align]")]), folder, on_gpu=False)
    machine = Machine(1, 1, 80, GPUS["h100"], on_gpu=False)
    measured = replace(machine, memory_factor=2.0, rates=replace(machine.rates, flops=machine.rates.flops / 10))
    before, after = (
        Stage(recipe, folder, "align", one, Lengths(64, 64)).at(zero_of(0), 4) for one in (machine, measured)
    )
    assert after.memory.activations == 2 * before.memory.activations > 0
    assert after.memory.backward - before.memory.backward == before.memory.rehearsed
    assert (after.memory.states, after.memory.step) == (before.memory.states, before.memory.step)
    assert after.time.compute == pytest.approx(10 * before.time.compute)
