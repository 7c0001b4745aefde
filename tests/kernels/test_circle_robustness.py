"""circle_loss where it could break: empty sets, overflow, memory layouts, autograd's corners, bad inputs."""

import gc
import math
import weakref

import pytest
import torch
from dcr_kernels import circle_loss
from kernel_testing import loss_and_gradient, make_batch, relative_error, truth

both_backends = pytest.mark.parametrize("backend", ["reference", "chunked"])
both_forms = pytest.mark.parametrize("form", ["anchor", "global"])


@both_backends
@both_forms
@pytest.mark.parametrize("reduction", ["valid", "nonzero"])
@pytest.mark.parametrize(
    "labels", [[0] * 6, [0, 1, 2, 3, 4, 5], [5], [-1] * 6, [-1, 3, -1], [0, 0, -1]],
    ids=["one-class", "all-singletons", "one-row", "all-dead", "one-live-row", "one-live-class"],
)  # fmt: skip
def test_without_both_kinds_of_pairs_all_is_zero(labels, form, reduction, backend):
    loss, gradient = loss_and_gradient(
        torch.randn(len(labels), 8), torch.tensor(labels), form=form, reduction=reduction, backend=backend
    )
    assert loss == 0
    assert (gradient == 0).all()


@both_backends
@both_forms
def test_dead_rows_take_no_part_whatever_they_hold(form, backend):
    h, labels = make_batch(20, 8, 3)
    dead = torch.tensor([0, 7, 19])
    live = torch.ones(20, dtype=torch.bool).index_fill(0, dead, False)
    expected_loss, expected_gradient = loss_and_gradient(h[live], labels[live], form=form, backend=backend)
    h[dead] = torch.tensor([math.nan, math.inf, 1e30])[:, None]
    labels[dead] = torch.tensor([-1, -1, -7])
    loss, gradient = loss_and_gradient(h, labels, form=form, backend=backend)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient[live], expected_gradient)
    assert (gradient[dead] == 0).all()


@both_backends
def test_zero_row_is_finite_and_gets_no_gradient(backend):
    h, labels = make_batch(12, 8, 2)
    h[3] = 0
    loss, gradient = loss_and_gradient(h, labels, backend=backend)
    assert loss.isfinite() and gradient.isfinite().all()
    assert (gradient[3] == 0).all() and gradient[4].norm() > 0


@both_backends
@both_forms
def test_duplicate_rows_agree_with_float64(form, backend):
    h, labels = make_batch(12, 8, 2)
    h[5], h[7] = h[4], h[4]  # one positive at least and one negative at most among three, whatever the labels
    loss, gradient = loss_and_gradient(h, labels, form=form, backend=backend)
    expected_loss, expected_gradient = truth(h, labels, form=form)
    assert relative_error(loss, expected_loss) <= 1e-6
    assert relative_error(gradient, expected_gradient) <= 5e-5


@both_backends
@both_forms
@pytest.mark.parametrize("scale", [256.0, 1024.0])
def test_extreme_cosines_do_not_overflow(scale, form, backend):
    h, labels = make_batch(16, 8, 2)
    labels[:4] = torch.tensor([0, 0, 1, 1])
    h[1], h[2] = -h[0], h[0]  # an antipodal positive pair and an identical negative one
    loss, gradient = loss_and_gradient(h, labels, scale=scale, form=form, backend=backend)
    expected_loss, expected_gradient = truth(h, labels, scale=scale, form=form)
    assert loss > scale  # float32 exp overflows at 88
    assert relative_error(loss, expected_loss) <= 1e-6
    # The rounding of a cosine, about 1e-7, is multiplied by α γ before the exponential.
    # The pull between exactly (anti)parallel rows is along the rows: it cancels, and leaves its rounding.
    difference = (gradient - expected_gradient).norm()
    assert difference <= 1e-6 * scale * (1 + expected_gradient.norm())


@both_backends
def test_nan_reaches_the_loss(backend):
    h, labels = make_batch(12, 8, 2)
    h[5, 1] = math.nan
    assert circle_loss(h, labels, backend=backend).isnan()


@both_backends
def test_memory_layout_does_not_matter(backend):
    base = torch.randn(24, 32)
    _, labels = make_batch(12, 8, 2)
    layouts = {
        "every second row": base[::2, :8],
        "offset and row stride": base[5:17, 3:11],
        "transposed": torch.randn(8, 12).T,
        "expanded rows": base[:1, :8].expand(12, 8),
        "expanded columns": base[:12, :1].expand(12, 8),
    }
    for layout, h in layouts.items():
        loss, gradient = loss_and_gradient(h, labels, backend=backend)
        expected_loss, expected_gradient = loss_and_gradient(h.contiguous(), labels, backend=backend)
        assert torch.equal(loss, expected_loss), layout
        assert torch.equal(gradient, expected_gradient), layout
    strided = torch.stack([labels, labels], dim=1)[:, 0]
    h = base[:12]
    assert circle_loss(h, strided, backend=backend) == circle_loss(h, labels, backend=backend)


@both_backends
def test_upstream_gradient_scales_the_gradient(backend):
    h, labels = make_batch(12, 8, 2)
    _, expected = loss_and_gradient(h, labels, backend=backend)
    h.requires_grad_()
    (circle_loss(h, labels, backend=backend) * -3.5).backward()
    assert relative_error(h.grad.double(), -3.5 * expected) <= 1e-6


def test_half_precision_gradient_survives_loss_scaling():
    h, labels = make_batch(12, 8, 2, torch.float16)
    h = (h * 1000).requires_grad_()  # long rows have short gradients
    _, expected = truth(h, labels)
    (circle_loss(h, labels) * 2.0**10).backward()
    assert relative_error(h.grad.double() / 2.0**10, expected) <= 4e-3


@both_backends
def test_backward_twice_on_one_graph(backend):
    h, labels = make_batch(12, 8, 2)
    h.requires_grad_()
    loss = circle_loss(h, labels, backend=backend)
    loss.backward(retain_graph=True)
    once = h.grad.clone()
    loss.backward()
    assert torch.equal(h.grad, 2 * once)


def test_double_backward_of_chunked_raises():
    h, labels = make_batch(12, 8, 2)
    h.requires_grad_()
    factor = torch.ones((), requires_grad=True)
    for loss_factor, message in ((1, "does not require grad"), (factor, "once_differentiable")):
        loss = loss_factor * circle_loss(h, labels, backend="chunked")
        (gradient,) = torch.autograd.grad(loss, h, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            gradient.sum().backward()


def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch):
    h, labels = make_batch(12, 8, 2)
    expected = circle_loss(h.clone().requires_grad_(), labels, backend="chunked").detach()
    monkeypatch.setattr("dcr_kernels.chunked._softmax", None)  # only the gradient pass calls it
    assert torch.equal(circle_loss(h, labels, backend="chunked"), expected)
    h.requires_grad_()
    for without_gradient in (torch.no_grad(), torch.inference_mode()):
        with without_gradient:
            assert torch.equal(circle_loss(h, labels, backend="chunked"), expected)
    with pytest.raises(TypeError):
        circle_loss(h, labels, backend="chunked")


@both_backends
def test_autocast_does_not_lower_the_precision(backend):
    h, labels = make_batch(33, 32, 2)
    expected_loss, expected_gradient = loss_and_gradient(h, labels, backend=backend)
    h.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = circle_loss(h, labels, backend=backend)
    loss.backward()
    assert torch.equal(loss.double(), expected_loss) and torch.equal(h.grad.double(), expected_gradient)


NO_LABELS = torch.zeros(0, dtype=torch.int64)
TWO_LABELS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    "h, labels, error, message",
    [
        ([[1.0]], TWO_LABELS[:1], TypeError, "h must be a torch.Tensor, got list"),
        (torch.ones(2, 3), [0, 1], TypeError, "labels must be a torch.Tensor, got list"),
        (torch.ones(2, 3).long(), TWO_LABELS, TypeError, "h must be float32.*got torch.int64"),
        (torch.ones(2, 3), TWO_LABELS.int(), TypeError, "labels must be int64, got torch.int32"),
        (torch.ones(2, 3, 4), TWO_LABELS, ValueError, r"\[N, D\], got \[2, 3, 4\]"),
        (torch.ones(0, 3), NO_LABELS, ValueError, r"at least one row.*got \[0, 3\]"),
        (torch.ones(2, 0), TWO_LABELS, ValueError, r"at least one row and one column.*got \[2, 0\]"),
        (torch.ones(2, 3), torch.zeros(3).long(), ValueError, r"labels must have shape \[2\].*got \[3\]"),
        (torch.ones(2, 3), TWO_LABELS[:, None], ValueError, r"labels must have shape \[2\].*got \[2, 1\]"),
        (torch.ones(2, 3), TWO_LABELS.to("meta"), ValueError, "one device, got cpu and meta"),
    ],
)
def test_bad_tensors_are_named(h, labels, error, message):
    with pytest.raises(error, match=message):
        circle_loss(h, labels)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(margin=1.0), r"margin must be in \[0, 1\), got 1.0"),
        (dict(margin=math.nan), r"margin must be in \[0, 1\), got nan"),
        (dict(scale=0), "scale must be above 0 and finite, got 0"),
        (dict(scale=math.inf), "scale must be above 0 and finite, got inf"),
        (dict(form="pairs"), "form must be one of anchor, global, got 'pairs'"),
        (dict(reduction="mean"), "reduction must be one of valid, nonzero, got 'mean'"),
        (dict(backend="cuda"), "backend must be one of auto, reference, chunked, got 'cuda'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        circle_loss(torch.ones(2, 3), torch.tensor([0, 1]), **options)


def test_check_finite_names_the_first_live_row():
    h, labels = make_batch(12, 8, 2)
    h[2, 0], h[6, 1], h[9, 3] = math.nan, math.inf, math.nan
    labels[2] = -1
    with pytest.raises(ValueError, match=r"not finite in row 6 \(2 such rows\)"):
        circle_loss(h, labels, check_finite=True)
    labels[[6, 9]] = -1
    assert circle_loss(h, labels, check_finite=True).isfinite()


def test_an_error_does_not_keep_the_rows_alive():
    """An exception in a cycle with its frame did; a process group so kept aborts the exit of a rank."""
    h, labels = make_batch(12, 8, 2)
    alive = weakref.ref(h)
    gc.disable()
    try:
        with pytest.raises(TypeError):
            circle_loss(h, labels.int())
        del h
        assert alive() is None
    finally:
        gc.enable()
