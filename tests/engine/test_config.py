"""Every `auto` of a DeepSpeed configuration is resolved from the recipe, and nothing else is changed."""

import copy

import pytest

from dcr_ds.engine.config import read_config, resolve_config
from dcr_ds.engine.zero3 import is_checked, resolve_partition
from dcr_ds.errors import UserError
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
    names = ["zero0", "zero1", "zero2", "zero3", "zero3_hpz", "zero3_hpz_quantized", "zero3_offload"]
    assert [f"{name}.json" for name in names] == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("on_gpu", [True, False])
def test_every_auto_is_resolved(name, on_gpu):
    config = read_config(Recipe(deepspeed=f"ds_configs/{name}"))
    assert "auto" in values_of(config)
    if zero := config.get("zero_optimization"):
        config["zero_optimization"], _ = resolve_partition(zero, 8, 2, on_gpu=True)
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


def test_auto_of_another_trainer_reaches_deepspeed_nowhere():
    config = {"optimizer": "auto", "scheduler": "auto", "wall_clock_breakdown": "auto", "fp16": {"enabled": "auto"}}
    assert not {*config} & {*resolve_config(config, STAGE, 1, "float32", on_gpu=False)}


def test_offloading_uses_the_optimizer_that_is_made_here():
    """DeepSpeed refuses it by default; test_weight_decay trains with it."""
    assert resolve_config({}, STAGE, 1, "float32", on_gpu=False)["zero_force_ds_cpu_optimizer"] is False


GPUS = {"world_size": 8, "on_gpu": True}


@pytest.mark.parametrize(
    ("zero", "machine", "expected"),
    [
        ({"stage": 3}, GPUS, True),  # DeepSpeed's own default, without a check
        ({"stage": 3, "overlap_comm": "auto"}, GPUS, True),
        ({"stage": 3, "overlap_comm": None}, GPUS, True),
        ({"stage": 3, "overlap_comm": "auto"}, GPUS | {"world_size": 1}, False),
        ({"stage": 3, "overlap_comm": "auto"}, GPUS | {"on_gpu": False}, False),
        ({"stage": 3, "overlap_comm": "auto", "offload_optimizer": {"device": "cpu"}}, GPUS, False),
        ({"stage": 3, "overlap_comm": False}, GPUS, False),
        ({"stage": 3, "overlap_comm": True}, GPUS | {"on_gpu": False}, True),
        ({"stage": 2, "overlap_comm": "auto"}, GPUS, False),
        ({"stage": 2, "overlap_comm": True}, GPUS, True),
    ],
)
def test_overlap_is_on_where_the_first_step_checks_it_or_the_user_says_so(zero, machine, expected):
    resolved = resolve_config({"zero_optimization": zero}, STAGE, dtype="float32", **machine)
    assert resolved["zero_optimization"]["overlap_comm"] is expected
    assert is_checked(zero, **machine) is (expected and zero.get("overlap_comm") in ("auto", None))


@pytest.mark.parametrize(
    ("size", "ranks", "nodes", "expected"), [("auto", 16, 2, 8), ("auto", 8, 1, 1), (8, 16, 2, 8), (4, 16, 2, 4)]
)
def test_the_secondary_partition_is_a_node_or_a_part_of_it(size, ranks, nodes, expected):
    zero, notes = resolve_partition({"stage": 3, "zero_hpz_partition_size": size}, ranks, nodes, on_gpu=False)
    assert zero["zero_hpz_partition_size"] == expected
    assert len(notes) == (size == "auto")


def test_a_secondary_partition_on_one_node_is_a_warning():
    zero, (note,) = resolve_partition({"stage": 3, "zero_hpz_partition_size": 4}, 8, 1, on_gpu=True)
    assert zero["zero_hpz_partition_size"] == 4
    assert note.startswith("WARNING: zero_hpz_partition_size: 4 on one node")
    _, notes = resolve_partition({"stage": 3, "zero_quantized_weights": True}, 8, 1, on_gpu=True)
    assert [note.split(":")[0] for note in notes] == ["WARNING"]


@pytest.mark.parametrize(
    ("zero", "ranks", "nodes", "words"),
    [
        ({"zero_hpz_partition_size": 3}, 16, 2, ["does not divide the 16 ranks", "8"]),
        ({"zero_hpz_partition_size": 16}, 16, 2, ["does not divide the 8 ranks of a node"]),
        ({"zero_quantized_weights": True}, 16, 2, ["zero_quantized_weights needs CUDA"]),
        ({"zero_quantized_gradients": True}, 16, 2, ["zero_quantized_gradients needs CUDA"]),
    ],
)
def test_a_partition_that_does_not_fit_the_machine_is_refused(zero, ranks, nodes, words):
    with pytest.raises(UserError) as error:
        resolve_partition({"stage": 3} | zero, ranks, nodes, on_gpu=False)
    assert all(word in str(error.value) for word in words)
