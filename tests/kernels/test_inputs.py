"""Bad inputs and options: the error names them."""

import gc
import math
import weakref

import pytest
import torch
from dcr_kernels import infonce_loss
from kernel_testing import BACKENDS, LOSSES, call, device_of, every_loss, make_batch

NO_LABELS = torch.zeros(0, dtype=torch.int64)
TWO_LABELS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    "h, labels, error, message",
    [
        ([[1.0]], TWO_LABELS[:1], TypeError, "h must be a torch.Tensor, got list"),
        (torch.ones(2, 3), [0, 1], TypeError, "labels must be a torch.Tensor, got list"),
        (torch.ones(2, 3).long(), TWO_LABELS, TypeError, "h must be float32.*got torch.int64"),
        (torch.ones(2, 3).to(torch.complex64), TWO_LABELS, TypeError, "h must be float32.*got torch.complex64"),
        (torch.ones(2, 3), TWO_LABELS.int(), TypeError, "labels must be int64, got torch.int32"),
        (torch.ones(2, 3), TWO_LABELS.float(), TypeError, "labels must be int64, got torch.float32"),
        (torch.ones(2, 3, 4), TWO_LABELS, ValueError, r"\[N, D\], got \[2, 3, 4\]"),
        (torch.ones(3), TWO_LABELS, ValueError, r"\[N, D\], got \[3\]"),
        (torch.ones(0, 3), NO_LABELS, ValueError, r"at least one row.*got \[0, 3\]"),
        (torch.ones(2, 0), TWO_LABELS, ValueError, r"at least one row and one column.*got \[2, 0\]"),
        (torch.ones(2, 3), torch.zeros(3).long(), ValueError, r"labels must have shape \[2\].*got \[3\]"),
        (torch.ones(2, 3), TWO_LABELS[:, None], ValueError, r"labels must have shape \[2\].*got \[2, 1\]"),
        (torch.ones(2, 3), TWO_LABELS.to("meta"), ValueError, "h and labels must be on one device, got cpu and meta"),
        (torch.ones(2, 3, device="meta"), TWO_LABELS, ValueError, "on one device, got meta and cpu"),
    ],
)
@every_loss
def test_bad_tensors_are_named(name, h, labels, error, message):
    with pytest.raises(error, match=message):
        positives = {"positives": TWO_LABELS} if LOSSES[name].takes_positives else {}
        LOSSES[name].function(h, labels, **positives)


OPTIONS = {
    "margin": {
        "circle-anchor": [(1.0, r"margin must be in \[0, 1\), got 1.0"), (-0.1, "margin"), (math.nan, "got nan")],
        "triplet": [(2.5, r"margin must be in \[0, 2\], got 2.5"), (-0.1, "margin"), (math.nan, "got nan")],
    },
    "scale": {
        "circle-anchor": [(value, r"scale must be above 0 and at most 1e\+06") for value in (0, -1, 2e6, math.nan)]
    },
    "temperature": {
        name: [(value, "temperature must be at least 1e-06 and finite") for value in (0, -1, 9e-7, math.inf, math.nan)]
        for name in ("supcon", "infonce", "ntxent")
    },
    "form": {"circle-anchor": [("pairs", "form must be one of anchor, global, got 'pairs'")]},
    "reduction": {
        name: [("mean", "reduction must be one of valid, nonzero, got 'mean'")]
        for name, loss in LOSSES.items()
        if loss.has_reduction
    },
    "backend": {name: [("cuda", f"backend must be one of auto, {', '.join(BACKENDS)}, got 'cuda'")] for name in LOSSES},
}


@pytest.mark.parametrize(
    "name, option, value, message",
    [
        pytest.param(name, option, value, message, id=f"{name}-{option}-{value}")
        for option, by_name in OPTIONS.items()
        for name, cases in by_name.items()
        for value, message in cases
    ],
)
def test_bad_options_are_named(name, option, value, message):
    loss = LOSSES[name]
    h, labels = make_batch(4, 8, 2)
    positives = {"positives": torch.full_like(labels, -1)} if loss.takes_positives else {}
    with pytest.raises(ValueError, match=message):
        loss.function(h, labels, **positives, **{option: value})
    if option != "backend":  # a module raises when it is constructed
        with pytest.raises(ValueError, match=message):
            loss.module(**{option: value})


@pytest.mark.parametrize(
    "positives, error, message",
    [
        ([1, 0, -1, -1], TypeError, "positives must be a torch.Tensor, got list"),
        (torch.tensor([1, 0, -1, -1], dtype=torch.int32), TypeError, "positives must be int64, got torch.int32"),
        (torch.tensor([1, 0, -1]), ValueError, r"positives must have shape \[4\].*got \[3\]"),
        (torch.tensor([1, 0, -1, -1]).to("meta"), ValueError, "h and positives must be on one device"),
        (torch.tensor([4, 0, -1, -1]), ValueError, r"row 0 names 4 \(1 such rows"),
        (torch.tensor([1, 2**62, -1, -1]), ValueError, "row 1 names 4611686018427387904"),
        (torch.tensor([1, 1, 1, -1]), ValueError, r"row 1 names 1 \(2 such rows"),
        (torch.tensor([1, 0, 3, -1]), ValueError, "row 2 names 3"),
        (torch.tensor([1, 0, 0, -1]), ValueError, "another row of the same label, or -1; row 2 names 0"),
        (None, TypeError, "InfoNCE, and no other loss, is given positives"),
    ],
    ids=["list", "dtype", "length", "device", "out of range", "huge", "self", "dead row", "another label", "none"],
)
def test_bad_positives_are_named(positives, error, message):
    h, labels = torch.randn(4, 8), torch.tensor([0, 0, 1, -1])
    with pytest.raises(error, match=message):
        infonce_loss(h, labels, positives)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if not loss.takes_positives])
def test_only_infonce_accepts_positives(name):
    h, labels = make_batch(4, 8, 2)
    with pytest.raises(TypeError, match="InfoNCE, and no other loss, is given positives"):
        LOSSES[name].module()(h, labels, labels)


@every_loss
@pytest.mark.parametrize("backend", BACKENDS)
def test_check_values_names_the_first_live_row(name, backend):
    h, labels = (value.to(device_of(backend)) for value in make_batch(12, 8, 2))
    h[2, 0], h[6, 1], h[9, 3], h[10] = math.nan, math.inf, math.nan, 1e20  # the square of 1e20 overflows
    labels[2] = -1
    with pytest.raises(ValueError, match=r"not finite in row 6 \(3 such rows\)"):
        call(name, h, labels, backend=backend, check_values=True)
    labels[[6, 9]] = -1
    with pytest.raises(ValueError, match=r"not finite in row 10 \(1 such rows\); a length that overflows"):
        call(name, h, labels, backend=backend, check_values=True)
    labels[10] = -1
    assert call(name, h, labels, backend=backend, check_values=True).isfinite()


@every_loss
def test_an_error_does_not_keep_the_rows_alive(name):
    """An exception in a reference cycle with its frame keeps a process group alive, which aborts the exit."""
    h, labels = make_batch(12, 8, 2)
    alive = weakref.ref(h)
    gc.disable()
    try:
        with pytest.raises(ValueError):
            call(name, h, labels, backend="none")
        with pytest.raises(ValueError):
            call(name, h[:, :0], labels)
        del h
        assert alive() is None
    finally:
        gc.enable()
