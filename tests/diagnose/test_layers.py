"""The layer probe: states equal those of transformers, known figures, and the rule behind refine.layer."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from dcr_ds.diagnose.layers import LayerFigures, choose_layer, hidden_by_layer, probe_layers
from dcr_ds.discernment.couples import AucInterval
from dcr_ds.errors import UserError
from tests.tiny import make_model

PROMPTS = [[7, 8, 9 + length, *range(20, 20 + length)] for length in (5, 1, 9, 8, 3)]  # two tokens are shared
LABELS, PAIRS = np.array([0, 1] * 40), np.arange(40).repeat(2)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "mixtral"])
def test_states_equal_the_hidden_states_of_single_prompts(tmp_path, model_type, pooling):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path, model_type))
    hidden = hidden_by_layer(model, PROMPTS, pooling, batch_size=2)
    assert hidden.shape == (3, 5, 32)
    for index, row in enumerate(PROMPTS):
        states = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        for layer in (1, 2, 3):
            expected = states[layer][0, -1] if pooling == "last" else states[layer][0, 2:].mean(0)
            torch.testing.assert_close(hidden[layer - 1, index], expected.detach(), atol=1e-4, rtol=1e-4)


def test_a_base_model_gives_the_same_states(tmp_path):
    folder = make_model(tmp_path)
    causal, base = AutoModelForCausalLM.from_pretrained(folder), AutoModel.from_pretrained(folder)
    assert torch.equal(hidden_by_layer(causal, PROMPTS), hidden_by_layer(base, PROMPTS))
    assert not causal.base_model.layers[0]._forward_hooks


def planted(first_layer: int, num_layers: int = 9, shift: float = 2.5, seed: int = 0) -> torch.Tensor:
    """States [layers, 80, 16] of 40 pairs of twins: a topic per pair, and toxicity from one layer on."""
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randn(40, 16, generator=generator).repeat_interleave(2, 0)
    states = topics + 0.3 * torch.randn(80, 16, generator=generator)
    states = states + 0.02 * torch.randn(num_layers, 80, 16, generator=generator)
    states[first_layer - 1 :, :, 3] += shift * torch.tensor(LABELS)
    return states


def test_separation_is_found_in_the_layer_that_has_it():
    figures = probe_layers(planted(first_layer=5), LABELS, PAIRS)
    assert [row.layer for row in figures] == list(range(1, 10))
    for row in figures[:4]:
        assert row.class_mean_auc.value < 0.65 and row.probe_auc.value < 0.7
    for row in figures[4:]:
        assert row.class_mean_auc.value > 0.7 and row.probe_auc.value > 0.9
        assert row.within - row.across > figures[0].within - figures[0].across and row.fisher > 2 * figures[0].fisher
        assert row.drift is None
    assert choose_layer(figures, num_blocks=10)[0] == 5


def test_twins_that_differ_by_chance_are_not_separated():
    values = [probe_layers(planted(1, 1, shift=0, seed=seed), LABELS, PAIRS)[0].probe_auc.value for seed in range(20)]
    assert abs(np.mean(values) - 0.5) < 4 * np.std(values) / np.sqrt(len(values)) < 0.1


def test_drift_and_cosines_computed_by_hand():
    states = torch.eye(2).repeat(20, 1)[None]  # the sets are on two axes
    row = probe_layers(states, np.array([0, 1] * 20), np.arange(40), refined=3 * states)[0]
    assert (row.within, row.across, row.drift) == pytest.approx((1, 0, 2))
    assert row.class_mean_auc.value == row.probe_auc.value == 1


def test_too_few_or_non_finite_states_are_an_error():
    with pytest.raises(UserError, match="9 toxic prompts; 5 folds need at least 10"):
        probe_layers(torch.randn(1, 29, 4), np.array([0] * 20 + [1] * 9), np.arange(29))
    states = planted(1)
    states[3, 5, 2] = float("inf")
    with pytest.raises(UserError, match="layer 4 are not finite"):
        probe_layers(states, LABELS, PAIRS)


def rows_of(aucs: list[float], error: float = 0.02) -> list[LayerFigures]:
    intervals = [AucInterval(value, value - 2 * error, value + 2 * error, error) for value in aucs]
    return [LayerFigures(i, interval, interval, 0.0, 1.0, 1.0) for i, interval in enumerate(intervals, start=1)]


def test_the_smallest_layer_within_one_standard_error_of_the_best():
    aucs = [0.99] * 7 + [0.70, 0.80, 0.84, 0.83, 0.85, 0.85, 0.80, 0.80, 0.80, 0.80] + [0.99] * 2  # 20 blocks: 8 to 17
    layer, reason = choose_layer(rows_of(aucs), num_blocks=20)
    assert layer == 10
    assert "0.840" in reason and "0.850 at layer 12" in reason and "layers 8 to 17" in reason


def test_without_separation_the_layer_does_not_follow_noise():
    assert choose_layer(rows_of([0.53] * 10 + [0.51] * 19), num_blocks=30)[0] == 24


@pytest.mark.parametrize("num_blocks", range(2, 90))
def test_the_chosen_layer_is_within_the_model(num_blocks):
    for value in (0.5, 0.9):
        layer, _ = choose_layer(rows_of([value] * (num_blocks - 1)), num_blocks)
        assert 0.4 * num_blocks <= layer <= 0.85 * num_blocks
