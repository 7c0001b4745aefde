"""Edge cases of the losses: empty sets, overflow, NaN, memory layouts, and special uses of autograd."""

import math

import pytest
import torch
from kernel_testing import (
    LOSSES,
    assert_close,
    call,
    device_of,
    draw_positives,
    every_backend,
    every_loss,
    fast_backends,
    loss_and_gradient,
    make_batch,
    relative_error,
    truth,
)

WITHOUT_PAIRS = {
    "one class": [0] * 6,
    "all singletons": [0, 1, 2, 3, 4, 5],
    "one row": [5],
    "all dead": [-1] * 6,
    "one dead row": [-1],
    "one live row": [-1, 3, -1],
    "one live class": [0, 0, -1, -(2**63)],
    "one positive pair, no negative": [2**62, 2**62],
    "one negative pair, no positive": [2**62, 2**62 + 1],
}


@every_backend
@every_loss
@pytest.mark.parametrize("reduction", ["valid", "nonzero"])
@pytest.mark.parametrize("labels", WITHOUT_PAIRS.values(), ids=WITHOUT_PAIRS)
def test_without_both_kinds_of_pairs_loss_and_gradient_are_zero(labels, reduction, name, backend):
    options = {"reduction": reduction} if LOSSES[name].has_reduction else {}
    h = torch.randn(len(labels), 8)
    h[torch.tensor(labels) < 0] = math.nan
    loss, gradient = loss_and_gradient(name, h, torch.tensor(labels), backend, **options)
    assert loss == 0 and not gradient.any()


@every_backend
def test_infonce_without_a_given_positive_is_zero(backend):
    h, labels = make_batch(12, 8, 3)
    loss, gradient = loss_and_gradient("infonce", h, labels, backend, positives=torch.full_like(labels, -1))
    assert loss == 0 and not gradient.any()


@every_backend
@every_loss
def test_ignored_rows_have_no_effect_whatever_their_values(name, backend):
    h, labels = make_batch(20, 8, 3)
    dead = torch.tensor([0, 7, 19])
    live = torch.ones(20, dtype=torch.bool).index_fill(0, dead, False)
    positives = draw_positives(labels[live])
    expected = loss_and_gradient(name, h[live], labels[live], backend, positives=positives)
    h[dead] = torch.tensor([math.nan, math.inf, 1e30])[:, None]
    labels[dead] = torch.tensor([-1, -1, -(2**62)])
    everywhere = torch.full_like(labels, -1)
    everywhere[live] = torch.where(positives >= 0, live.nonzero().squeeze(1)[positives], -1)
    loss, gradient = loss_and_gradient(name, h, labels, backend, positives=everywhere)
    assert_close((loss, gradient[live]), expected, 1e-6, 1e-5)
    assert not gradient[dead].any()


@every_backend
@pytest.mark.parametrize("named", [1, 4, 99])
def test_positives_of_ignored_rows_do_not_matter(named, backend):
    h, labels = torch.randn(6, 8), torch.tensor([0, 0, 1, 1, -1, 0])
    h[4] = math.nan
    positives = torch.tensor([1, 0, 3, 2, -1, 0])
    expected = loss_and_gradient("infonce", h, labels, backend, positives=positives)
    positives[4] = named
    assert_close(loss_and_gradient("infonce", h, labels, backend, positives=positives), expected, 0, 0)


@every_backend
@every_loss
def test_a_zero_row_is_finite_and_gets_no_gradient(name, backend):
    h, labels = make_batch(12, 8, 2)
    h[3] = 0
    loss, gradient = loss_and_gradient(name, h, labels, backend)
    assert not gradient[3].any() and gradient.any()
    assert_close((loss, gradient), truth(name, h, labels), 1e-6, 5e-5)


@every_backend
@every_loss
def test_duplicate_rows_agree_with_float64(name, backend):
    h, labels = make_batch(12, 8, 2)
    labels[4:8] = torch.tensor([0, 0, 0, 1])
    h[5], h[7] = h[4], h[4]  # equal rows of one label, and of two
    options = {"margin": 0.3} if name == "triplet" else {}
    result = loss_and_gradient(name, h, labels, backend, **options)
    assert_close(result, truth(name, h, labels, **options), 1e-6, 5e-5)


SHARP = [(f"circle-{form}", "scale", scale) for form in ("anchor", "global") for scale in (256.0, 1024.0)]
SHARP += [(name, "temperature", value) for name in ("supcon", "infonce", "ntxent") for value in (0.01, 0.002)]
SHARP += [("triplet", "margin", 2.0)]


@every_backend
@pytest.mark.parametrize("name, option, value", SHARP)
def test_extreme_cosines_do_not_overflow(name, option, value, backend):
    h, labels = make_batch(16, 8, 2)
    labels[:4] = torch.tensor([0, 0, 1, 1])
    h[1], h[2] = -h[0], h[0]  # an antipodal positive pair and an identical negative one
    positives = draw_positives(labels)
    positives[0] = 1
    options = {option: value, "positives": positives} if name == "infonce" else {option: value}
    loss, gradient = loss_and_gradient(name, h, labels, backend, **options)
    expected_loss, expected_gradient = truth(name, h, labels, **options)
    assert expected_loss > (3 if name == "triplet" else 45)
    assert relative_error(loss, expected_loss) <= 1e-6
    # The rounding of a cosine, about 1e-7, is multiplied by the slope of the logit before the exponential.
    # The gradient between exactly (anti)parallel rows is along the rows; it cancels except for rounding.
    slope = 1 / value if option == "temperature" else value
    assert (gradient - expected_gradient).norm() <= 1e-6 * slope * (1 + expected_gradient.norm())


STEEPEST = [("circle-anchor", {"scale": 1e6}), ("circle-global", {"scale": 1e6})]
STEEPEST += [(name, {"temperature": 1e-6}) for name in ("supcon", "infonce", "ntxent")]


@every_backend
@pytest.mark.parametrize("name, options", STEEPEST)
def test_the_steepest_options_are_finite_and_about_right(name, options, backend):
    h, labels = make_batch(16, 8, 2)
    loss, gradient = loss_and_gradient(name, h, labels, backend, **options)
    expected_loss, expected_gradient = truth(name, h, labels, **options)
    assert relative_error(loss, expected_loss) <= 1e-6 and relative_error(gradient, expected_gradient) <= 0.3


@every_backend
@every_loss
@pytest.mark.parametrize("reduction", ["valid", "nonzero"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 5, 11], ids=["of a pair", "of many", "singleton"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, of the interpreter
def test_non_finite_values_reach_the_loss(row, value, reduction, name, backend):
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3])
    h = torch.randn(12, 8)
    h[row, 1] = value
    options = {"reduction": reduction} if LOSSES[name].has_reduction else {}
    loss, gradient = loss_and_gradient(name, h, labels, backend, **options)
    assert loss.isnan() and gradient.isnan().any()


@every_backend
@every_loss
def test_the_memory_layout_does_not_matter(name, backend):
    device = device_of(backend)
    base = torch.randn(24, 32, device=device)
    _, labels = make_batch(12, 8, 2)
    layouts = {
        "every second row": base[::2, :8],
        "offset and row stride": base[5:17, 3:11],
        "transposed": torch.randn(8, 12, device=device).T,
        "expanded rows": base[:1, :8].expand(12, 8),
        "expanded columns": base[:12, :1].expand(12, 8),
    }
    for layout, h in layouts.items():
        assert not h.is_contiguous()
        loss, gradient = loss_and_gradient(name, h, labels, backend)
        expected_loss, expected_gradient = loss_and_gradient(name, h.contiguous(), labels, backend)
        assert relative_error(loss, expected_loss) <= 1e-6, layout
        assert (gradient - expected_gradient).norm() <= 1e-6 * (1 + expected_gradient.norm()), layout


@every_backend
@every_loss
def test_strided_labels(name, backend):
    device = device_of(backend)
    h, labels = (value.to(device) for value in make_batch(12, 8, 2))
    positives = draw_positives(labels.cpu()).to(device)
    strided, strided_positives = (torch.stack([values, values], dim=1)[:, 0] for values in (labels, positives))
    expected = call(name, h, labels, positives, backend=backend)
    assert call(name, h, strided, strided_positives, backend=backend) == expected


@every_backend
@every_loss
def test_the_upstream_gradient_scales_the_gradient(name, backend):
    h, labels = (value.to(device_of(backend)) for value in make_batch(12, 8, 2))
    _, expected = loss_and_gradient(name, h, labels, backend)
    h.requires_grad_()
    (call(name, h, labels, backend=backend) * -3.5).backward()
    assert relative_error(h.grad.cpu(), -3.5 * expected) <= 1e-6


@fast_backends
@every_loss
def test_a_half_precision_gradient_survives_loss_scaling(name, backend):
    h, labels = make_batch(60, 64, 3, torch.float16)
    h *= 8000  # long rows have small gradients
    options = {"scale": 2.0} if "circle" in name else {}
    _, expected = truth(name, h, labels, **options)
    assert relative_error(expected.half(), expected) > 4e-3  # too small for float16
    h, labels = h.to(device_of(backend)).requires_grad_(), labels.to(device_of(backend))
    (call(name, h, labels, backend=backend, **options) * 2.0**14).backward()
    assert relative_error(h.grad.cpu().double() / 2.0**14, expected) <= 4e-3


@every_backend
@every_loss
def test_backward_twice_on_one_graph(name, backend):
    h, labels = (value.to(device_of(backend)) for value in make_batch(12, 8, 2))
    h.requires_grad_()
    loss = call(name, h, labels, backend=backend)
    loss.backward(retain_graph=True)
    once = h.grad.clone()
    loss.backward()
    assert once.any() and torch.equal(h.grad, 2 * once)


@fast_backends
@every_loss
def test_a_double_backward_raises(name, backend):
    h, labels = (value.to(device_of(backend)) for value in make_batch(12, 8, 2))
    h.requires_grad_()
    factor = torch.ones((), requires_grad=True, device=h.device)
    for loss_factor, message in ((1, "does not require grad"), (factor, "once_differentiable")):
        loss = loss_factor * call(name, h, labels, backend=backend)
        (gradient,) = torch.autograd.grad(loss, h, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            gradient.sum().backward()


@fast_backends
@every_loss
def test_no_gradient_is_computed_if_none_is_needed(name, backend, monkeypatch):
    h, labels = (value.to(device_of(backend)) for value in make_batch(12, 8, 2))
    expected = call(name, h.clone().requires_grad_(), labels, backend=backend).detach()
    pairs = {"chunked": "chunked.ChunkedPairs", "triton": "triton_pairs.TritonPairs"}[backend]
    monkeypatch.setattr(f"dcr_kernels.{pairs}.toward", None)  # the gradient pass
    loss = call(name, h, labels, backend=backend)
    assert torch.equal(loss, expected) and not loss.requires_grad
    h.requires_grad_()
    for without_gradient in (torch.no_grad(), torch.inference_mode()):
        with without_gradient:
            assert torch.equal(call(name, h, labels, backend=backend), expected)
    with pytest.raises(TypeError):
        call(name, h, labels, backend=backend)


@every_backend
@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_does_not_lower_the_precision(dtype, name, backend):
    h, labels = make_batch(33, 32, 2, dtype)
    expected_loss, expected_gradient = loss_and_gradient(name, h, labels, backend)
    h, labels = h.to(device_of(backend)).requires_grad_(), labels.to(device_of(backend))
    with torch.autocast(h.device.type, torch.bfloat16):
        loss = call(name, h, labels, backend=backend)
    loss.backward()
    assert torch.equal(loss.cpu().double(), expected_loss)
    assert torch.equal(h.grad.cpu().double(), expected_gradient)
