"""Overlap is kept if the first step is the same with it and without, else turned off; the check leaves no trace."""

import pytest
import torch
from small_engine import accumulate, make_engine, train, trained_weights

from dcr_ds.engine.overlap import Streams, compare, gradient_norms, settle_overlap
from dcr_ds.recipe import Recipe

SIDE, GATHER = object(), "_PartitionedParameterCoordinator__allgather_stream"


class Named(Streams):
    """Streams of an engine that was built with overlap on a GPU, as far as a CPU can show it."""

    def __init__(self, engine):
        super().__init__(engine)
        self.own = (SIDE, SIDE)

    def use(self, overlap):
        super().use(overlap)
        self.overlap = overlap
        # on a CPU there are no streams to communicate on
        self.in_use = self.optimizer.reduce_and_partition_stream, getattr(self.coordinator, GATHER)
        self.optimizer.reduce_and_partition_stream = None
        setattr(self.coordinator, GATHER, None)


@pytest.fixture
def engine(ranks):
    return make_engine(ranks, 3, seed=1)


def first_step(engine, factor=lambda: 1.0):
    """The gradients of a step; with overlap, the factor changes them as an error of DeepSpeed would."""
    handles = [
        parameter.register_hook(lambda gradient: gradient * factor())
        for parameter in engine.module.parameters()
        if parameter.requires_grad
    ]
    loss = accumulate(engine, 0)
    for handle in handles:
        handle.remove()
    return {"loss": loss}


def test_the_same_gradients_keep_overlap_on(engine, ranks, capsys):
    streams = Named(engine)
    assert compare(engine, streams, lambda: first_step(engine), ranks)
    assert streams.overlap and streams.in_use == (SIDE, SIDE)
    assert "overlap_comm: on" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [1.1, 0.0, float("nan")])
def test_other_gradients_turn_overlap_off(engine, ranks, capsys, factor):
    streams = Named(engine)
    assert not compare(engine, streams, lambda: first_step(engine, lambda: factor if streams.overlap else 1.0), ranks)
    assert not streams.overlap and SIDE not in streams.in_use
    assert "WARNING: overlap_comm: off" in capsys.readouterr().err


def test_another_loss_turns_overlap_off(engine, ranks):
    streams = Named(engine)
    assert not compare(engine, streams, lambda: {"loss": accumulate(engine, 0) + 5 * streams.overlap}, ranks)


def test_the_check_leaves_no_trace(ranks):
    checked, other = make_engine(ranks, 3, seed=1), make_engine(ranks, 3, seed=1)
    torch.manual_seed(5)
    compare(checked, Streams(checked), lambda: first_step(checked), ranks)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())
    for engine in (checked, other):
        train(engine, range(3))
    first, second = trained_weights(checked, ranks), trained_weights(other, ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_norms_are_those_of_the_gradients(engine, ranks):
    accumulate(engine, 0)
    norms = gradient_norms(engine, ranks)
    engine.step()
    assert len(norms) == 4 and norms.norm().item() == pytest.approx(float(engine.get_global_grad_norm()), rel=1e-6)


@pytest.mark.parametrize("overlap", ["auto", True, False])
def test_nothing_is_compared_on_a_cpu(engine, ranks, overlap):
    recipe = Recipe(deepspeed={"zero_optimization": {"stage": 3, "overlap_comm": overlap}})
    settle_overlap(engine, recipe, lambda: pytest.fail("a step was computed"), ranks)
