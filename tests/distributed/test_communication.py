"""Under ZeRO-3, overlap and hpZ change neither losses nor gradients; hpZ gathers within a node what it can."""

from pathlib import Path

import pytest
import torch
from processes import as_ranks, run_command
from tiny import make_model

SCRIPT = Path(__file__).with_name("communication.py")
pytestmark = pytest.mark.timeout(600)  # a launch of four ranks, on few cores


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("communication")
    model = make_model(folder / "model", tied=False)
    run_command(*as_ranks(4), SCRIPT, model, folder / "out.pt", timeout=400)
    return torch.load(folder / "out.pt")


@pytest.mark.parametrize("case", ["overlap", "hpz"])
@pytest.mark.parametrize("stage", ["refine", "align"])
def test_losses_and_gradients_are_the_same(runs, case, stage):
    """Equal bit for bit, also after a step: a secondary partition of old weights is not used."""
    plain, run = runs["plain"], runs[case]
    assert run[f"{stage}/losses"] == plain[f"{stage}/losses"] and len(set(run[f"{stage}/losses"])) == 3
    expected = plain[f"{stage}/gradients"]
    assert run[f"{stage}/gradients"].keys() == expected.keys() and expected
    assert all(torch.equal(run[f"{stage}/gradients"][name], expected[name]) for name in expected)


def test_the_check_of_overlap_passes_on_several_ranks(runs):
    assert runs["overlap"]["equal"]


def test_the_secondary_partition_is_as_large_as_planned(runs):
    assert runs["hpz"]["partition"] == 2 and runs["plain"]["secondary"] == 0
    assert runs["hpz"]["secondary"] == pytest.approx(runs["hpz"]["planned"], rel=0.01)


@pytest.mark.parametrize(("stage", "groups"), [("refine", {2, 4}), ("align", {4})])
def test_only_the_first_pass_of_a_step_gathers_from_all_nodes(runs, stage, groups):
    """Align has one pass here, after which DeepSpeed keeps the parameters for the backward pass."""
    plain, hpz = (runs[case][f"{stage}/gathered"] for case in ("plain", "hpz"))
    assert plain.keys() == {4} and hpz.keys() == groups
    assert sum(hpz.values()) == pytest.approx(plain[4], rel=0.01)
    trained = sum(gradient.numel() * 4 for gradient in runs["plain"][f"{stage}/gradients"].values())
    assert hpz[4] == pytest.approx(trained, rel=0.01)


def test_both_terms_of_stage_1_in_one_pass_have_the_same_gradients(runs):
    plain, joint = runs["plain"], runs["joint"]
    assert joint["joint"] == [True, True] and plain["joint"] == [False, False]
    assert joint["refine/losses"] == pytest.approx(plain["refine/losses"], rel=2e-5)
    for name, expected in plain["refine/gradients"].items():
        assert torch.allclose(joint["refine/gradients"][name], expected, rtol=1e-4, atol=1e-5 * expected.norm().item())


def test_joint_measurements_have_the_same_figures(runs):
    plain, joint = runs["plain"]["figures"], runs["joint"]["figures"]
    assert joint == pytest.approx(plain, abs=1e-4) and plain["drift"] > 1e-3


def test_one_pass_gathers_half_as_much_as_two(runs):
    assert runs["plain"]["refine/gathered"][4] == 2 * runs["joint"]["refine/gathered"][4]
    assert runs["plain"]["measure/gathered"][4] >= 2 * runs["joint"]["measure/gathered"][4]
