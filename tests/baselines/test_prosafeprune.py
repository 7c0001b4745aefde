"""ProSafePrune: the pruned weights against the formula with full projections, and the choice of layers."""

import pytest
import torch
from subjects import load, make_subject, module_outputs

from dcr_ds.baselines.edits import write_edited
from dcr_ds.baselines.prosafeprune import BASES, ProSafePruneSettings, basis, chosen_layers, prosafeprune, silhouette
from dcr_ds.errors import UserError
from dcr_ds.recipe import ChatTemplate

RANK, STRENGTH = 3, 0.7


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("model"))


def projection(model, name, prompts):
    """Π of the mean outputs of a module, prompt by prompt."""
    rows = torch.stack([module_outputs(model, [name], row)[name].mean(0) for row in prompts])
    vectors = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -RANK:]
    return vectors @ vectors.T


def test_pruned_weights_are_those_of_the_formula(subject, tmp_path):
    settings = ProSafePruneSettings(RANK, STRENGTH, ("attention", "mlp"), (1,))
    source = tmp_path / "model"
    subject.model.save_pretrained(source)
    make_subject(tmp_path / "other")  # for its tokenizer
    for file in (tmp_path / "other").glob("*token*"):
        (source / file.name).write_bytes(file.read_bytes())
    write_edited(source, prosafeprune(subject, settings), {}, [], tmp_path / "out", ChatTemplate())
    written, pruned = load(tmp_path / "out"), 0
    for name, weight in subject.model.named_parameters():
        change = written.get_parameter(name) - weight
        if ".layers.1." not in name or not name.endswith("proj.weight"):
            assert not change.any(), name
            continue
        module = name.removesuffix(".weight")
        safe, unsafe, pseudo = (
            projection(subject.model, module, subject.prompts[kind].train.tokens) for kind in BASES.values()
        )
        expected = -STRENGTH * (torch.eye(len(weight), dtype=torch.float64) - safe) @ unsafe @ pseudo @ weight
        assert (change - expected).abs().max() < 1e-6 and expected.abs().max() > 1e-3
        assert torch.linalg.matrix_rank(change, atol=1e-9) <= RANK
        assert (safe @ change).abs().max() < 1e-9, "outputs in the space of harmless prompts change"
        pruned += 1
    assert pruned == 7


def test_silhouette_equals_that_of_single_distances():
    points = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    values = []
    for i in range(9):
        mean = {
            label: sum((points[i] - points[j]).norm().item() for j in range(9) if labels[j] == label and j != i)
            / sum(labels[j] == label and j != i for j in range(9)).item()
            for label in range(3)
        }
        own = mean.pop(labels[i].item())
        values.append((min(mean.values()) - own) / max(own, min(mean.values())))
    assert silhouette(points, labels) == pytest.approx(sum(values) / 9, abs=1e-12)


def test_the_layers_are_a_window_around_the_best_one_in_the_middle():
    scores = [0.9] * 5 + [0.1] * 10 + [0.9] * 5
    scores[12] = 0.5
    assert chosen_layers(scores) == (10, 11, 12, 13, 14)
    assert chosen_layers([0.0, 0.2, 0.1]) == (0, 1, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ProSafePruneSettings(rank=21), "20 prompts of the set harmless, fewer than --rank 21"),
        (ProSafePruneSettings(rank=16), "--rank 16 is the whole output of model.layers.0.self_attn.k_proj"),
        (ProSafePruneSettings(rank=2, layers=(1, 3)), "no layer 3; the model has 3 blocks, so 0 to 2"),
    ],
)
def test_what_cannot_be_pruned_is_named(subject, settings, message):
    with pytest.raises(UserError, match=message):
        prosafeprune(subject, settings)


def test_prompts_that_span_fewer_dimensions_than_the_rank():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(9, 2, generator=generator) @ torch.randn(2, 5, generator=generator)
    assert basis(states, 2).shape == (5, 2)
    with pytest.raises(UserError, match="outputs of 9 prompts span 2 dimensions, fewer than --rank 3"):
        basis(states, 3)
