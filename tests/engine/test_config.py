"""Every `auto` of a DeepSpeed configuration is resolved from the recipe, and nothing else is changed."""

import copy

import pytest

from dcr_ds.engine.config import read_config, resolve_config
from dcr_ds.recipe import Recipe, StageSection, shipped_files

SHIPPED = [path.name for path in shipped_files("ds_configs", ".json")]
STAGE = StageSection(global_batch=24, micro_batch=3, max_grad_norm=0.7)


def values_of(config):
    for value in config.values():
        if isinstance(value, dict):
            yield from values_of(value)
        else:
            yield value


def test_all_stages_are_shipped():
    assert SHIPPED == ["zero0.json", "zero1.json", "zero2.json", "zero3.json", "zero3_offload.json"]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("on_gpu", [True, False])
def test_every_auto_is_resolved(name, on_gpu):
    config = read_config(Recipe(deepspeed=f"ds_configs/{name}"))
    assert "auto" in values_of(config)
    resolved = resolve_config(config, STAGE, 8, "bfloat16", on_gpu)
    assert "auto" not in values_of(resolved)
    assert resolved["zero_optimization"]["stage"] == int(name[4])


@pytest.mark.parametrize("world_size", [1, 8])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_recipe_sets_precision_and_clipping(world_size, dtype):
    resolved = resolve_config({}, STAGE, world_size, dtype, on_gpu=True)
    assert resolved["bf16"]["enabled"] is (dtype == "bfloat16")
    assert resolved["gradient_clipping"] == 0.7


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_deepspeed_does_not_count_micro_batches(world_size):
    """The project decides when a step ends, so that DeepSpeed's batch sizes only have to be consistent."""
    resolved = resolve_config({"train_micro_batch_size_per_gpu": "auto"}, STAGE, world_size, "float32", on_gpu=True)
    assert resolved["managed_gradient_accumulation"] is False
    product = resolved["train_micro_batch_size_per_gpu"] * resolved["gradient_accumulation_steps"] * world_size
    assert resolved["train_batch_size"] == product


@pytest.mark.parametrize("config", [{}, {"zero_optimization": {}}, {"zero_optimization": {"overlap_comm": False}}])
def test_a_configuration_without_a_stage_means_zero_0(config):
    assert resolve_config(config, STAGE, 1, "float32", on_gpu=False)["zero_optimization"]["stage"] == 0


@pytest.mark.parametrize("on_gpu", [True, False])
def test_memory_is_pinned_on_a_gpu_unless_configured_otherwise(on_gpu):
    zero = {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": "auto"},
        "offload_param": {"device": "cpu", "pin_memory": False},
    }
    resolved = resolve_config({"zero_optimization": zero}, STAGE, 1, "float32", on_gpu)["zero_optimization"]
    assert resolved["offload_optimizer"]["pin_memory"] is on_gpu
    assert resolved["offload_param"]["pin_memory"] is False


def test_values_set_by_the_user_are_kept():
    zero = {"stage": 2, "reduce_bucket_size": 12345}
    config = {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto", "immediate_grad_update": True},
        "wall_clock_breakdown": True,
    }
    before = copy.deepcopy(config)
    resolved = resolve_config(config, STAGE, 2, "bfloat16", on_gpu=True)
    assert resolved["zero_optimization"] == zero and resolved["wall_clock_breakdown"] is True
    assert resolved["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert config == before
