"""A stage leaves no tensor behind, and its peak memory is its own."""

import gc

import pytest
import torch

import dcr_ds
from dcr_ds.engine import build
from dcr_ds.engine.memory import peak_memory_bytes, reset_peak_memory
from tests.small_runs import write_recipe
from tests.tiny import make_model

ON_CPU = torch.device("cpu")
NOISE_BYTES = 4096  # constants that libraries keep


def live_bytes() -> int:
    """Bytes of all tensors that Python can reach."""
    gc.collect()
    storages = [o.untyped_storage() for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize(
    ("config", "dtype", "adapter"),
    [
        ("zero0", "float32", "none"),
        ("zero0", "bfloat16", "none"),
        ("zero1", "bfloat16", "none"),
        ("zero2", "float32", "lora"),
        ("zero3", "bfloat16", "lora"),
        ("zero3_offload", "bfloat16", "none"),
    ],
)
def test_each_stage_starts_without_the_tensors_of_the_one_before(tmp_path, monkeypatch, config, dtype, adapter):
    model = make_model(tmp_path / "model", hidden_size=64, vocab_size=3000)
    recipe = dcr_ds.load_recipe(
        str(write_recipe(tmp_path, model)),
        {
            "deepspeed": f"ds_configs/{config}.json",
            "model.dtype": dtype,
            "refine.adapter": adapter,
            "align.adapter": adapter,
            "control": "stl",
        },
    )
    before = []
    monkeypatch.setattr(build, "reset_peak_memory", lambda device: before.append(live_bytes()))
    dcr_ds.train(recipe)
    assert len(before) == 3  # refine, align, control
    assert max(before) <= before[0] + NOISE_BYTES
    assert live_bytes() <= before[0] + NOISE_BYTES


def test_peak_memory_is_measured_from_the_last_reset():
    torch.ones(60_000_000)  # freed at once
    reset_peak_memory(ON_CPU)
    at_reset = peak_memory_bytes(ON_CPU)
    kept = torch.ones(25_000_000)
    assert kept.nbytes * 0.9 <= peak_memory_bytes(ON_CPU) - at_reset <= kept.nbytes * 1.5
