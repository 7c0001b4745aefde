"""`auto` values depend on the recipe, the model and the machine alone, so a plan can resolve them anywhere."""

import pytest

from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.machine import Machine
from dcr_ds.engine.resolve import resolve
from dcr_ds.errors import UserError
from dcr_ds.recipe import load_recipe

MODEL = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008}
CPU = Machine(on_gpu=False, memory_bytes=16 << 30)
GPU = Machine(
    on_gpu=True, memory_bytes=80 << 30, ranks=8, bf16=True, flash_attention="", liger="", varlen=True
)  # fmt: skip


def resolved(machine, **fields):
    return resolve(
        load_recipe(None, [(name.replace("__", "."), value) for name, value in fields.items()]), MODEL, machine
    )


def test_every_auto_is_resolved_with_a_reason():
    for machine in (CPU, GPU):
        recipe, reasons = resolved(machine)
        model, stages = recipe.model, (recipe.refine, recipe.align)
        assert "auto" not in (model.dtype, model.attention, model.kernels, recipe.refine.layer)
        assert all(isinstance(stage.micro_batch, int) and isinstance(stage.packed_length, int) for stage in stages)
        assert {"model.dtype", "model.attention", "model.kernels", "refine.layer"} < set(reasons)
        assert isinstance(recipe.deepspeed, dict)


def test_gpu_with_all_kernels_uses_them():
    model = resolved(GPU)[0].model
    assert (model.dtype, model.attention, model.kernels) == ("bfloat16", "flash_attention_2", "liger")


def test_cpu_uses_neither_bfloat16_nor_gpu_kernels():
    model = resolved(CPU)[0].model
    assert (model.dtype, model.attention, model.kernels) == ("float32", "sdpa", "none")


def test_micro_batch_is_limited_by_samples_per_rank_and_by_memory():
    wide = {"align__global_batch": "4096", "align__max_length": "128"}
    large, small = (
        resolved(Machine(True, gib << 30, ranks=8, bf16=True), **wide)[0].align.micro_batch for gib in (80, 20)
    )
    assert 1 <= small < large < 4096 // 8
    assert resolved(GPU, align__global_batch="16")[0].align.micro_batch == 2


def test_ranks_without_a_sample_are_named():
    assert "the others get no sample" in resolved(GPU, align__global_batch="6")[1]["align.global_batch"]
    assert "align.global_batch" not in resolved(GPU, align__global_batch="8")[1]


def test_explicit_values_are_kept_or_refused():
    recipe, reasons = resolved(GPU, model__attention="sdpa", refine__layer="7", align__micro_batch="3")
    assert (recipe.model.attention, recipe.refine.layer, recipe.align.micro_batch) == ("sdpa", 7, 3)
    assert not {"model.attention", "refine.layer", "align.micro_batch"} & set(reasons)
    with pytest.raises(UserError, match="model.kernels: liger cannot be used: no GPU"):
        resolved(CPU, model__kernels="liger")


def test_resolved_recipe_resolves_to_itself():
    recipe, _ = resolved(GPU)
    assert resolve(recipe, MODEL, GPU) == (recipe, {})


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])  # of torchrun and of DeepSpeed's launcher
def test_nodes_are_counted_by_what_the_launcher_says(monkeypatch, name):
    import torch

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv(name, "4")
    assert Machine.detect(Ranks(0, 8, 0, torch.device("cpu"))).nodes == 2


def test_this_machine_is_detected():
    import torch

    machine = Machine.detect(Ranks(0, 1, 0, torch.device("cpu")))
    assert not machine.on_gpu and machine.memory_bytes > 1 << 28 and (machine.ranks, machine.nodes) == (1, 1)
    assert machine.flash_attention == machine.liger == "no GPU"
