"""pool against a plain loop over sequences, forward and backward, padded and packed."""

import pytest
import torch
from dcr_kernels import circle_loss, pool

LENGTHS = [5, 1, 7, 3]
LONGEST, WIDTH = 7, 6


def padded(sequences, side, dtype=torch.float32):
    """Lay the sequences into [B, T, D] with NaN as padding; return it with its mask."""
    longest = LONGEST + 2 * (side == "both")
    hidden = torch.full((len(sequences), longest, WIDTH), torch.nan, dtype=dtype)
    mask = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        start = {"left": longest - len(sequence), "right": 0, "both": 1}[side]
        hidden[row, start : start + len(sequence)] = sequence.detach()
        mask[row, start : start + len(sequence)] = 1
    return hidden.requires_grad_(), mask


def by_loop(sequences, how):
    if how == "last":
        return torch.stack([sequence[-1] for sequence in sequences])
    return torch.stack([sequence.sum(dim=0) / len(sequence) for sequence in sequences])


@pytest.fixture
def sequences():
    return [torch.randn(length, WIDTH, requires_grad=True) for length in LENGTHS]


@pytest.mark.parametrize("how", ["last", "mean"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool])
def test_padded(sequences, how, side, mask_dtype):
    hidden, mask = padded(sequences, side)
    h, row_norm = pool(hidden, how, mask.to(mask_dtype))
    expected = by_loop(sequences, how)
    torch.testing.assert_close(h, expected)
    torch.testing.assert_close(row_norm, expected.detach().norm(dim=1))
    assert not row_norm.requires_grad

    upstream = torch.randn_like(h)
    h.backward(upstream)
    expected.backward(upstream)
    assert (hidden.grad[mask == 0] == 0).all()
    for row, sequence in enumerate(sequences):
        torch.testing.assert_close(hidden.grad[row][mask[row] == 1], sequence.grad)


@pytest.mark.parametrize("how", ["last", "mean"])
@pytest.mark.parametrize("trailing", [0, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_packed(sequences, how, trailing, dtype):
    hidden = torch.cat([*sequences, torch.full((trailing, WIDTH), torch.nan)]).detach().requires_grad_()
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).to(dtype)
    h, row_norm = pool(hidden, how, cu_seqlens=cu_seqlens)
    expected = by_loop(sequences, how)
    torch.testing.assert_close(h, expected)
    torch.testing.assert_close(row_norm, expected.detach().norm(dim=1))

    upstream = torch.randn_like(h)
    h.backward(upstream)
    expected.backward(upstream)
    real, padding = hidden.grad.split([sum(LENGTHS), trailing])
    torch.testing.assert_close(real, torch.cat([sequence.grad for sequence in sequences]))
    assert (padding == 0).all()


def test_mask_with_a_hole_takes_the_last_one_and_skips_the_hole():
    hidden = torch.arange(4.0).reshape(1, 4, 1)
    mask = torch.tensor([[1, 0, 1, 0]])
    assert pool(hidden, "last", mask)[0].item() == 2
    assert pool(hidden, "mean", mask)[0].item() == 1


def test_without_a_mask_all_tokens_are_real():
    hidden = torch.randn(2, 5, 3)
    assert torch.equal(pool(hidden, "last")[0], hidden[:, -1])
    torch.testing.assert_close(pool(hidden, "mean")[0], hidden.mean(dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_last_exact_and_mean_in_float32(dtype):
    hidden = torch.randn(2, 1000, 8).to(dtype)
    last, norm = pool(hidden, "last")
    assert last.dtype == dtype and torch.equal(last, hidden[:, -1])
    assert norm.dtype == torch.float32
    packed = hidden.flatten(0, 1)
    for mean, _ in (pool(hidden, "mean"), pool(packed, "mean", cu_seqlens=torch.tensor([0, 1000, 2000]))):
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean.double(), hidden.double().mean(dim=1), rtol=1e-5, atol=1e-6)


def test_float64_stays_float64():
    h, norm = pool(torch.randn(2, 5, 3, dtype=torch.float64), "mean")
    assert h.dtype == norm.dtype == torch.float64


def test_the_pooled_rows_feed_the_loss():
    hidden, mask = padded([torch.randn(length, WIDTH) for length in LENGTHS], "right", torch.bfloat16)
    for how in ("last", "mean"):
        h, _ = pool(hidden, how, mask)
        (gradient,) = torch.autograd.grad(circle_loss(h, torch.tensor([0, 0, 1, 1])), hidden)
        assert gradient.dtype == torch.bfloat16 and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(how="first"), ValueError, "how must be last or mean, got 'first'"),
        (dict(hidden=torch.ones(2, 3, 4).long()), TypeError, "must be floating point, got torch.int64"),
        (dict(hidden=torch.ones(2, 3)), ValueError, r"\[2, 3\] without mask and without cu_seqlens"),
        (dict(cu_seqlens=torch.tensor([0, 2])), ValueError, r"\[2, 3, 4\] without mask and with cu_seqlens"),
        (dict(mask=torch.ones(2, 3)), TypeError, "mask must be bool or integer, got torch.float32"),
        (dict(mask=torch.ones(3, 2).long()), ValueError, r"mask must have shape \[2, 3\], got \[3, 2\]"),
        (dict(mask=torch.tensor([[1, 1, 1], [0, 0, 0]])), ValueError, r"row 1 .* token \(1 such rows of 2\)"),
    ],
)
def test_bad_padded_inputs_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        pool(**({"hidden": torch.ones(2, 3, 4)} | arguments))


@pytest.mark.parametrize(
    "cu_seqlens, error, message",
    [
        ([0, 2, 2, 5], ValueError, "row 1 has no real token"),
        ([0, 3, 6], ValueError, r"rise from 0 to at most 5, the number of tokens, got \[0, 3, 6\]"),
        ([1, 3, 5], ValueError, "rise from 0 to at most 5"),
        ([0, 4, 3], ValueError, "rise from 0 to at most 5"),
        ([0.0, 5.0], TypeError, "cu_seqlens must be int32 or int64, got torch.float32"),
        ([0], ValueError, r"cu_seqlens must have shape \[B \+ 1\].*got \[1\]"),
    ],
)
def test_bad_packed_inputs_are_named(cu_seqlens, error, message):
    with pytest.raises(error, match=message):
        pool(torch.ones(5, 4), cu_seqlens=torch.tensor(cu_seqlens))
