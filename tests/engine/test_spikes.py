"""Spikes are detected at any scale of the losses; noise, trends and the first steps are not spikes."""

import random

import pytest

from dcr_ds.engine.watch.spikes import NUM_NEEDED, NUM_RECENT, SpikeDetector


def spikes(losses, state=None):
    """Indices of the losses that are spikes."""
    state = {"loss_first": losses[0]} if state is None else state
    detector = SpikeDetector(state)
    return [index for index, loss in enumerate(losses) if detector.note(loss) is not None]


def noisy(seed, count=400, level=2.0, spread=0.1):
    generator = random.Random(seed)
    return [level * (1 + spread * generator.gauss(0, 1)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.1, 0.5])
def test_noise_is_not_a_spike(seed, spread):
    assert spikes(noisy(seed, spread=spread)) == []


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_jump_is_a_spike_at_any_scale(scale):
    losses = noisy(0)
    losses[100] = 6.0
    assert spikes([scale * loss for loss in losses]) == [100]


def test_a_spike_does_not_hide_the_next():
    losses = noisy(1)
    for index in range(100, 140):
        losses[index] = 9.0
    assert spikes(losses) == list(range(100, 140))


def test_falling_and_rising_losses_are_not_spikes():
    assert spikes([10 * 0.97**step for step in range(300)]) == []
    assert spikes([0.1 + 0.01 * step for step in range(300)]) == []


def test_fluctuations_of_almost_zero_losses_are_not_spikes():
    losses = [3.0, *[1e-4 if step % 7 else 0.5 for step in range(200)]]
    assert spikes(losses) == []


def test_the_first_steps_are_not_checked():
    losses = noisy(2, count=NUM_NEEDED)
    losses[5] = 1e6
    assert spikes(losses) == []


def test_a_resumed_stage_detects_the_same_spikes():
    losses = noisy(3)
    losses[200] = 7.0
    state = {"loss_first": losses[0]}
    assert spikes(losses[:150], state) == [] and len(state["recent_losses"]) == NUM_RECENT
    assert [150 + index for index in spikes(losses[150:], state)] == spikes(losses) == [200]
