"""The values and gradients of the losses: against float64, and the float64 definition against plain loops."""

import itertools
import math

import pytest
import torch
from kernel_testing import (
    FAST_BACKENDS,
    LOSSES,
    assert_close,
    call,
    case_id,
    draw_positives,
    every_loss,
    fast_backends,
    loss_and_gradient,
    make_batch,
    pairwise,
    truth,
)

# Relative errors of the loss and of the gradient. The arithmetic is float32; in half precision the gradient is
# rounded when it is returned, and on a GPU so are the weights of the pairs.
TOLERANCES = {torch.float32: (1e-6, 5e-5), torch.bfloat16: (1e-5, 4e-3), torch.float16: (1e-5, 4e-3)}
DTYPES = list(TOLERANCES)
WIDTHS = [32, 40, 96]
SINGLETONS = 10**9  # every row is its own class


def quick_cases():
    """Each loss with all combinations of two values of two parameters, with and without both kinds of pairs."""
    for name, loss in LOSSES.items():
        reductions = ["valid", "nonzero"] if loss.has_reduction else ["valid"]
        rest = dict(width=WIDTHS, dtype=DTYPES, reduction=reductions, backend=FAST_BACKENDS)
        for rows, classes in (([33, 70, 130], [2, 7]), ([1, 2, 33], [1, SINGLETONS])):
            for case in pairwise(rows=rows, classes=classes, **rest):
                yield {"name": name} | case


def full_cases():
    for name, loss in LOSSES.items():
        reductions = ["valid", "nonzero"] if loss.has_reduction else ["valid"]
        for rows, classes in itertools.product([1, 2, 33, 70, 130], [1, 2, 7, SINGLETONS]):
            if classes >= rows and classes != SINGLETONS:
                continue  # singletons again
            base = dict(name=name, rows=rows, classes=classes)
            for values in itertools.product(WIDTHS, DTYPES, reductions, FAST_BACKENDS):
                yield base | dict(zip(("width", "dtype", "reduction", "backend"), values, strict=True))


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full-kernels", default=False)
        metafunc.parametrize("case", full_cases() if full else quick_cases(), ids=case_id)


def test_agrees_with_the_float64_reference(case):
    name, dtype = case["name"], case["dtype"]
    h, labels = make_batch(case["rows"], case["width"], case["classes"], dtype)
    if len(h) > 2:
        labels[len(h) // 2] = -1
        h[len(h) // 2] = math.nan
    options = {"reduction": case["reduction"]} if LOSSES[name].has_reduction else {}
    loss, gradient = loss_and_gradient(name, h, labels, case["backend"], **options)
    expected = truth(name, h, labels, **options)
    if len(h) > 2 and 1 < case["classes"] < len(h):
        assert expected[0] > 0.1
        assert_close((loss, gradient), expected, *TOLERANCES[dtype])
        assert not gradient[labels < 0].any()
    else:
        assert expected[0] == 0 == loss
        assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@fast_backends
@every_loss
def test_wide_rows_and_the_sharpest_options(name, backend, dtype):
    h, labels = make_batch(70, 576, 2, dtype)
    options = LOSSES[name].sharpest
    result = loss_and_gradient(name, h, labels, backend, **options)
    expected = truth(name, h, labels, **options)
    assert expected[0] > 1
    assert_close(result, expected, *TOLERANCES[dtype])


@fast_backends
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "triplet"])  # whose values are not small
def test_tiny_losses_keep_their_precision(name, backend):
    """Twelve solved labels, two rows each: the loss is the exponential of a difference of two logits, each rounded
    by eps · slope."""
    options, slope = ({"scale": 256.0}, 64) if "circle" in name else ({"temperature": 0.04}, 25)
    h = torch.eye(12, 16).repeat_interleave(2, dim=0) + 0.02 * torch.randn(24, 16)
    labels = torch.arange(24) // 2
    result = loss_and_gradient(name, h, labels, backend, **options)
    expected = truth(name, h, labels, **options)
    assert 0 < expected[0] < 1e-9
    rounding = 2 * slope * torch.finfo(torch.float32).eps
    if name == "supcon":  # the difference of two numbers as large as a logit, with no digit left
        for value, exact in zip(result, expected, strict=True):
            assert (value - exact).norm() <= rounding
    else:
        assert_close(result, expected, rounding, rounding)


@pytest.mark.parametrize("reduction", ["valid", "nonzero"])
@every_loss
def test_chunked_equals_the_reference_in_float64(name, reduction):
    options = {"reduction": reduction} if LOSSES[name].has_reduction else {}
    h, labels = make_batch(70, 40, 8, torch.float64)
    labels[::9] = -1
    result = loss_and_gradient(name, h, labels, "chunked", **options)
    assert_close(result, truth(name, h, labels, **options), 1e-13, 1e-12)


@every_loss
def test_many_tiles_agree_with_a_single_tile(name, monkeypatch):
    h, labels = make_batch(130, 32, 8)
    single = loss_and_gradient(name, h, labels, "chunked")
    monkeypatch.setattr("dcr_kernels.chunked._MIN_TILE_ROWS", 7)
    monkeypatch.setattr("dcr_kernels.chunked._CPU_TILE_ELEMENTS", 1)
    monkeypatch.setattr("dcr_kernels.pairwise._CHUNK_ELEMENTS", 1000)
    assert_close(loss_and_gradient(name, h, labels, "chunked"), single, 1e-6, 1e-5)


MARGIN, SCALE, TEMPERATURE = 0.25, 8.0, 0.1


def circle_of(cosines, labels, pairs):
    """log(1 + Σ_positive exp · Σ_negative exp) over the given pairs."""
    sums = [0.0, 0.0]
    for i, j in pairs:
        s, same = cosines[i][j], labels[i] == labels[j]
        if same:
            logit = -SCALE * max(1 + MARGIN - s, 0) * (s - (1 - MARGIN))
        else:
            logit = SCALE * max(s + MARGIN, 0) * (s - MARGIN)
        sums[same] += math.exp(logit)
    return math.log1p(sums[0] * sums[1])


def terms_of(name, cosines, labels, positives):
    """The terms whose mean is the loss, from the formulas, for rows with both kinds of partners."""
    rows = range(len(labels))
    if name == "circle-global":
        yield circle_of(cosines, labels, [(i, j) for i in rows for j in range(i)])
        return
    for i in rows:
        others = [j for j in rows if j != i]
        same = [j for j in others if labels[j] == labels[i]]
        different = [j for j in others if labels[j] != labels[i]]
        if not same or not different:
            continue
        weight = {j: math.exp(cosines[i][j] / TEMPERATURE) for j in others}
        noise = sum(weight[j] for j in different)
        if name == "circle-anchor":
            yield circle_of(cosines, labels, [(i, j) for j in others])
        elif name == "supcon":
            yield -sum(math.log(weight[j] / sum(weight.values())) for j in same) / len(same)
        elif name == "infonce" and positives[i] >= 0:
            yield -math.log(weight[positives[i]] / (weight[positives[i]] + noise))
        elif name == "ntxent":
            yield from (-math.log(weight[j] / (weight[j] + noise)) for j in same)
        elif name == "triplet":
            hardest = max(cosines[i][j] for j in different) - min(cosines[i][j] for j in same)
            yield max(hardest + MARGIN, 0)


@pytest.mark.parametrize("reduction", ["valid", "nonzero"])
@every_loss
def test_the_reference_equals_the_definition_over_pairs(name, reduction):
    h, _ = make_batch(9, 5, 3, torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 0, 2, 3])  # row 8 has no positive
    positives = draw_positives(labels)
    h[7] = 3 * h[5] + 0.01  # an easy pair: its triplet has a loss of 0
    options = {"circle": {"scale": SCALE}, "triplet": {}}.get(name.split("-")[0], {"temperature": TEMPERATURE})
    options |= {"margin": MARGIN} if "temperature" not in options else {}
    options |= {"reduction": reduction} if LOSSES[name].has_reduction else {}
    loss = call(name, h, labels, positives, backend="reference", **options)

    cosines = torch.cosine_similarity(h[:, None], h[None, :], dim=-1).tolist()
    terms = list(terms_of(name, cosines, labels.tolist(), positives.tolist()))
    zeros = terms.count(0)
    assert zeros == 0 or name == "triplet"
    counted = len(terms) - zeros if reduction == "nonzero" else len(terms)
    assert loss.item() == pytest.approx(sum(terms) / counted, rel=1e-12)


def test_a_solved_triplet_counts_for_valid_and_not_for_nonzero():
    h = torch.tensor([[1.0, 0], [1, 0.1], [-1, 0], [-1, 0.1], [-1, 3], [-1, -3]])
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    solved = [call("triplet", h, labels, reduction=reduction, margin=0.0) for reduction in ("valid", "nonzero")]
    assert 0 < solved[0] < solved[1]
