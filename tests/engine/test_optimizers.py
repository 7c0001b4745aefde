"""bitsandbytes' optimizers: close to torch's AdamW, resumed bit for bit under ZeRO, an error where they cannot run."""

import pytest
import torch
from small_engine import load_newest, save_checkpoint, trained_weights
from transformers import get_scheduler

from dcr_ds.engine.build import build_engine, stage_config
from dcr_ds.engine.optimizers import FROM_BITSANDBYTES, build_optimizer, build_schedule, check_optimizer
from dcr_ds.errors import UserError
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.recipe import StageSection

WIDTH = 96  # 9,216 values per matrix; below 4,096 bitsandbytes keeps 32 bits
STATES = ("adamw8bit", "paged_adamw32bit")  # either kind; without a GPU nothing is paged


def make_engine(ranks, zero, optimizer, dtype="float32"):
    stage = StageSection(learning_rate=1e-3, optimizer=optimizer)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, WIDTH))
    config = stage_config({"zero_optimization": {"stage": zero}}, stage, dtype, ranks)
    return build_engine(model.to(getattr(torch, dtype)), stage, config, "constant", 9, ranks)


def train(engine, steps):
    dtype = next(engine.module.parameters()).dtype
    for step in steps:
        batch = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(step)).to(dtype)
        engine.backward((engine(batch) - batch.flip(1)).square().mean(), scale_wrt_gas=False)
        engine.step()


def test_a_step_on_a_cpu_makes_no_copies_of_the_states():
    weight = torch.nn.Parameter(torch.ones(1_000_000))
    weight.grad = torch.ones_like(weight)
    optimizer = build_optimizer([weight], StageSection(learning_rate=1e-3))
    optimizer.step()  # makes the states
    with LiveBytes() as live:
        before = live.alive
        optimizer.step()
        assert live.peak - before < weight.nbytes / 10


@pytest.mark.parametrize("optimizer", FROM_BITSANDBYTES)
def test_steps_are_close_to_those_of_adamw(optimizer):
    weights = {}
    for name in ("adamw", optimizer):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(WIDTH, WIDTH))
        instance = build_optimizer([weight], StageSection(optimizer=name, learning_rate=1e-3, weight_decay=0.1))
        for _ in range(4):
            weight.grad = torch.randn_like(weight)
            instance.step()
        weights[name] = weight.detach()
    difference = (weights[optimizer] - weights["adamw"]).norm() / weights["adamw"].norm()
    assert difference < (1e-5 if optimizer == "paged_adamw32bit" else 0.1)
    eight_bits = any(state.dtype == torch.uint8 for state in instance.state[weight].values() if torch.is_tensor(state))
    assert eight_bits is ("8bit" in optimizer)


@pytest.mark.parametrize("zero", [0, 2, 3])
@pytest.mark.parametrize("optimizer", STATES)
def test_steps_after_a_resume_are_those_of_the_uninterrupted_run(tmp_path, ranks, zero, optimizer):
    engine = make_engine(ranks, zero, optimizer)
    train(engine, range(3))
    save_checkpoint(engine, tmp_path, 3, {}, keep=1, ranks=ranks)
    train(engine, range(3, 6))
    resumed = make_engine(ranks, zero, optimizer)
    assert load_newest(resumed, tmp_path, ranks) == (3, {})
    train(resumed, range(3, 6))
    expected, resumed_weights = trained_weights(engine, ranks), trained_weights(resumed, ranks)
    assert all(torch.equal(resumed_weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("optimizer", STATES)
def test_states_of_bitsandbytes_are_not_converted_for_other_ranks(tmp_path, ranks, optimizer):
    """DeepSpeed's converter supports only AdamW's moments. ZeRO 1 stands for another number of ranks."""
    engine = make_engine(ranks, 2, optimizer)
    train(engine, range(1))
    save_checkpoint(engine, tmp_path, 1, {}, keep=1, ranks=ranks)
    with pytest.raises(UserError, match="cannot be converted for another number of ranks .*launch with 1 ranks"):
        load_newest(make_engine(ranks, 1, optimizer), tmp_path, ranks)
    assert not list(tmp_path.glob("*universal*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_unsupported_device_is_named():
    stage = StageSection(optimizer="adamw8bit")
    with pytest.raises(UserError, match=r"align.optimizer: adamw8bit .* cannot run on cuda .*dcr-ds\[qlora\].*adamw"):
        check_optimizer(stage, "align.optimizer", torch.device("cuda"))
    check_optimizer(stage, "align.optimizer", torch.device("cpu"))


@pytest.mark.parametrize(
    "name, theirs", [("constant", "constant_with_warmup"), ("linear", "linear"), ("cosine", "cosine")]
)
@pytest.mark.parametrize("warmup, total", [(0, 7), (3, 7), (9, 7)])
def test_schedules_are_those_of_transformers(name, theirs, warmup, total):
    rates = []
    for build in (build_schedule, lambda _, *sizes: get_scheduler(theirs, *sizes)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule = build(name, optimizer, warmup, total)
        rates.append([])
        for _ in range(total + 3):
            rates[-1].append(schedule.get_last_lr())
            optimizer.step()
            schedule.step()
    assert rates[0] == rates[1]
