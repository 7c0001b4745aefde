"""How many ranks hold a copy of an evaluated model: the smallest number with which it fits."""

import pytest
from transformers import LlamaConfig

from dcr_ds.engine.copies import footprint, parameters, resolve_copies
from dcr_ds.engine.machine import Machine
from dcr_ds.errors import UserError
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.tensor_parallel import as_config, why_not_spread
from dcr_ds.plan.shapes import SHAPES, shipped
from dcr_ds.recipe import EvaluateSection


def copies(shape: str, gib: int, ranks: int = 8, nodes: int = 1, **evaluate) -> tuple[int, str]:
    machine = Machine(on_gpu=True, memory_bytes=gib << 30, ranks=ranks, nodes=nodes, bf16=True)
    return resolve_copies(EvaluateSection(**evaluate), model_config(SHAPES / shape), machine, 2)


@pytest.mark.parametrize("shape", shipped(), ids=lambda shape: shape["folder"])
def test_parameters_are_counted_as_published(shape):
    config = as_config(model_config(SHAPES / shape["folder"]))
    assert parameters(config) == pytest.approx(shape["parameters"], rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "gib", "ranks", "nodes", "expected"),
    [
        ("qwen2.5-7b", 80, 8, 1, 1),
        ("llama-3-8b", 24, 8, 1, 1),
        ("qwen2.5-72b", 80, 8, 1, 4),
        ("qwen2.5-72b", 141, 8, 1, 2),
        ("qwen2.5-72b", 80, 32, 4, 4),  # of a node's eight ranks
        ("llama-3.1-70b", 20, 8, 1, 8),  # more than 80 % of the memory, but its weights fit
        ("qwen2.5-7b", 16, 6, 1, 2),  # 4 key-value heads: not 3 or 6
    ],
)
def test_smallest_number_that_fits(shape, gib, ranks, nodes, expected):
    size, reason = copies(shape, gib, ranks, nodes)
    assert size == expected
    config = as_config(model_config(SHAPES / shape))
    need = footprint(config, 2, EvaluateSection()).per_rank(size)
    assert f"{need / 2**30:.1f} GiB" in reason
    assert ("at most" in reason) == (need <= 0.8 * (gib << 30))


def test_larger_batches_need_more_ranks():
    assert [copies("qwen2.5-7b", 24, batch_size=size)[0] for size in (32, 256, 1024)] == [1, 2, 4]


def test_a_cpu_holds_whole_copies_unless_asked():
    machine = Machine(on_gpu=False, memory_bytes=1 << 30, ranks=4)
    config = model_config(SHAPES / "qwen2.5-72b")
    assert resolve_copies(EvaluateSection(), config, machine, 4)[0] == 1
    assert resolve_copies(EvaluateSection(ranks_per_copy=2), config, machine, 4) == (2, "as asked")


@pytest.mark.parametrize(
    ("shape", "gib", "ranks", "evaluate", "message"),
    [
        ("qwen2.5-7b", 80, 8, {"ranks_per_copy": 3}, "it does not divide .* ranks per node, 8; set it to 1 or 2 or"),
        ("qwen2.5-7b", 80, 8, {"ranks_per_copy": 8}, "num_attention_heads = 28 of the model is not a multiple of 8"),
        ("qwen2.5-72b", 80, 1, {}, "does not fit: .* a GPU has 80.0 GiB, and a copy can be on at most 1 rank "),
        ("llama-3.1-405b", 80, 6, {}, "on at most 2 ranks .*num_attention_heads = 128 .*not a multiple of 3"),
    ],
)
def test_what_is_impossible_is_refused_with_what_to_do(shape, gib, ranks, evaluate, message):
    with pytest.raises(UserError, match=f"evaluate.ranks_per_copy: .*{message}.*URL#MODEL"):
        copies(shape, gib, ranks, **evaluate)


def test_a_model_without_a_plan_is_not_spread():
    config = LlamaConfig()
    config.base_model_tp_plan = None
    assert why_not_spread(config, 2) == "transformers has no tensor-parallel plan for llama"
