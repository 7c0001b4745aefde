"""The gradient of an optimizer step does not depend on ranks, micro-batches, packing or ZeRO stage."""

from pathlib import Path

import pytest
import torch
from processes import as_ranks, run_command
from tiny import make_model

SCRIPT = Path(__file__).with_name("first_gradients.py")
pytestmark = pytest.mark.timeout(900)  # three launches of up to three ranks, on few cores


# ZeRO stages and micro-batches by number of ranks; 8 rows do not divide by 3 ranks, nor 4 rows by 3
LAUNCHES = {
    "quick": {1: ([0, 3], [8, 1]), 2: ([3], [3])},
    "all": {1: ([0, 2, 3], [8, 4, 1]), 2: ([0, 2, 3], [4]), 3: ([2, 3], [2, 1])},
}


@pytest.fixture(scope="module", params=["quick", pytest.param("all", marks=pytest.mark.slow)])
def launches(request):
    return LAUNCHES[request.param]


@pytest.fixture(scope="module")
def runs(launches, tmp_path_factory):
    """Results of first_gradients.py by number of ranks."""
    folder = tmp_path_factory.mktemp("gradients")
    models = (
        make_model(folder / "model", tied=False),
        make_model(folder / "mixture", "qwen3_moe", layers=2, tied=False, router_aux_loss_coef=0.5),
    )
    results = {}
    for ranks, (zero_stages, micro_batches) in launches.items():
        out = folder / f"{ranks}.pt"
        run_command(*as_ranks(ranks), SCRIPT, *models, out, zero_stages, micro_batches, timeout=400)
        results[ranks] = torch.load(out)
    return results


def relative_error(gradients: dict, expected: dict) -> float:
    assert gradients.keys() == expected.keys()
    difference = torch.cat([(gradients[name] - expected[name]).flatten() for name in gradients])
    return float(difference.norm() / torch.cat([gradients[name].flatten() for name in gradients]).norm())


@pytest.mark.parametrize("stage", ["refine", "align"])
def test_gradients_equal_one_process(runs, launches, stage):
    reference = runs[1][f"{stage}/zero0/micro8"]
    assert all(gradient.abs().sum() > 0 for name, gradient in reference.items())
    compared = 0
    for ranks, results in runs.items():
        for key, gradients in results.items():
            if key.startswith(f"{stage}/") and not key.endswith("/loss"):
                assert relative_error(reference, gradients) <= 1e-5, (ranks, key)
                compared += 1
    packed = len(launches)
    assert compared == packed + sum(len(zero) * len(micro) for zero, micro in launches.values())


@pytest.mark.parametrize("stage", ["refine", "refine second step", "align"])
def test_losses_equal_one_process(runs, stage):
    """In the second step of stage 1 the model differs from the original, so that the retain term is not zero."""
    reference = runs[1][f"{stage}/zero0/micro8/loss"]
    for results in runs.values():
        for key, loss in results.items():
            if key.startswith(f"{stage}/") and key.endswith("/loss"):
                assert loss == pytest.approx(reference, rel=2e-5), key


def test_the_loss_of_routers_and_its_gradients_equal_one_process(runs):
    reference, loss = runs[1]["balance/zero3/micro1"], runs[1]["balance/zero3/micro1/loss"]
    assert all(gradient.abs().sum() > 0 for name, gradient in reference.items() if ".gate." in name)
    for ranks, results in runs.items():
        own = {key: value for key, value in results.items() if key.startswith("balance/")}
        assert len(own) == 4
        for key, value in own.items():
            if key.endswith("/loss"):
                assert value == pytest.approx(loss, rel=1e-5), (ranks, key)
            else:
                assert relative_error(reference, value) <= 1e-5, (ranks, key)


@pytest.mark.parametrize("loss", ["supcon", "infonce", "ntxent", "triplet"])
def test_gradients_of_the_other_losses_equal_one_process(runs, loss):
    reference = runs[1][f"refine {loss}/zero3/micro1"]
    assert all(gradient.abs().sum() > 0 for gradient in reference.values())
    compared = 0
    for ranks, results in runs.items():
        for key in results:
            if key.startswith(f"refine {loss}/") and not key.endswith("/loss"):
                assert relative_error(reference, results[key]) <= 1e-5, (ranks, key)
                assert results[f"{key}/loss"] == pytest.approx(runs[1][f"refine {loss}/zero3/micro1/loss"], rel=2e-5)
                compared += 1
    assert compared == len(runs)


# log-probabilities of the reference: of both answers of eleven pairs; KTO's, of 22 answers and of three steps
REFERENCES = {"dpo": 2 * 11, "kto": 22 + 3 * 8, "orpo": None, "simpo": None}


@pytest.mark.parametrize("method", REFERENCES)
def test_preferences_equal_one_process(runs, method):
    """Gradients, metrics and the reference; each sample is computed once, on any rank."""
    case = f"{method}/zero3/micro1"
    assert all(gradient.abs().sum() > 0 for gradient in runs[1][case].values())
    assert len(runs[1].get(f"{case}/reference", [])) == (REFERENCES[method] or 0)
    assert method != "kto" or runs[1][f"{case}/kl"] > 0
    figures = [key.removeprefix(f"{case}/") for key in runs[1] if key.startswith(f"{case}/")]
    assert len(figures) >= 6
    compared = 0
    for ranks, results in runs.items():
        for run in [key for key in results if key.startswith(f"{method}/") and key.count("/") == 2]:
            assert relative_error(runs[1][case], results[run]) <= 1e-5, (ranks, run)
            for name in figures:
                expected = pytest.approx(runs[1][f"{case}/{name}"], rel=1e-4, abs=1e-5)
                assert results[f"{run}/{name}"] == expected, (ranks, run, name)
            compared += 1
    assert compared == 2 * len(runs)
