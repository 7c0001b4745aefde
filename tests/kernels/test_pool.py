"""pool against a plain loop over sequences: forward and backward, padded and packed, in PyTorch and Triton."""

import pytest
import torch
from dcr_kernels import circle_loss, pool, pooling, triton_pooling

LENGTHS = [5, 1, 7, 3]
LONGEST, WIDTH = 7, 6
BACKENDS = ["reference", "triton"]
# Rounding to the dtype of the hidden states, which affects the gradient but not the mean.
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def padded(sequences, side, dtype=torch.float32):
    """Place the sequences into [B, T, D] with NaN as padding; return it with its mask."""
    longest = max(map(len, sequences)) + 2 * (side == "both")
    hidden = torch.full((len(sequences), longest, sequences[0].shape[1]), torch.nan, dtype=dtype)
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
def test_padded(sequences, how, side, mask_dtype, backend):
    hidden, mask = padded(sequences, side)
    h, row_norm = pool(hidden, how, mask.to(mask_dtype), backend=backend)
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
def test_packed(sequences, how, trailing, dtype, backend):
    hidden = torch.cat([*sequences, torch.full((trailing, WIDTH), torch.nan)]).detach().requires_grad_()
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).to(dtype)
    h, row_norm = pool(hidden, how, cu_seqlens=cu_seqlens, backend=backend)
    expected = by_loop(sequences, how)
    torch.testing.assert_close(h, expected)
    torch.testing.assert_close(row_norm, expected.detach().norm(dim=1))

    upstream = torch.randn_like(h)
    h.backward(upstream)
    expected.backward(upstream)
    real, padding = hidden.grad.split([sum(LENGTHS), trailing])
    torch.testing.assert_close(real, torch.cat([sequence.grad for sequence in sequences]))
    assert (padding == 0).all()


def test_mask_with_a_gap_uses_the_last_token_and_skips_the_gap(backend):
    hidden = torch.tensor([0.0, torch.nan, 2.0, torch.inf]).reshape(1, 4, 1).requires_grad_()
    mask = torch.tensor([[1, 0, 1, 0]])
    assert pool(hidden, "last", mask, backend=backend)[0].item() == 2
    mean, _ = pool(hidden, "mean", mask, backend=backend)
    assert mean.item() == 1
    mean.backward()
    assert hidden.grad.flatten().tolist() == [0.5, 0, 0.5, 0]


def test_without_a_mask_all_tokens_count(backend):
    hidden = torch.randn(2, 5, 3)
    assert torch.equal(pool(hidden, "last", backend=backend)[0], hidden[:, -1])
    torch.testing.assert_close(pool(hidden, "mean", backend=backend)[0], hidden.mean(dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_last_exact_and_mean_in_float32(dtype, backend):
    hidden = torch.randn(2, 1000, 8).to(dtype)
    last, norm = pool(hidden, "last", backend=backend)
    assert last.dtype == dtype and torch.equal(last, hidden[:, -1])
    assert norm.dtype == torch.float32
    packed, cu_seqlens = hidden.flatten(0, 1), torch.tensor([0, 1000, 2000])
    for options in (dict(hidden=hidden), dict(hidden=packed, cu_seqlens=cu_seqlens)):
        mean, _ = pool(**options, how="mean", backend=backend)
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean.double(), hidden.double().mean(dim=1), rtol=1e-5, atol=1e-6)


def test_float64_stays_float64(backend):
    h, norm = pool(torch.randn(2, 5, 3, dtype=torch.float64), "mean", backend=backend)
    assert h.dtype == norm.dtype == torch.float64


def test_the_pooled_rows_feed_the_loss(backend):
    hidden, mask = padded([torch.randn(length, WIDTH) for length in LENGTHS], "right", torch.bfloat16)
    for how in ("last", "mean"):
        h, _ = pool(hidden, how, mask, backend=backend)
        (gradient,) = torch.autograd.grad(circle_loss(h, torch.tensor([0, 0, 1, 1])), hidden)
        assert gradient.dtype == torch.bfloat16 and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("how", ["last", "mean"])
@pytest.mark.parametrize("layout", ["holes", "packed"])
@pytest.mark.parametrize(
    "dtype, width",
    [(torch.float32, 1), (torch.float32, 40), (torch.bfloat16, 33), (torch.bfloat16, 576), (torch.float16, 96)],
)
def test_triton_matches_float64_of_the_same_values(how, layout, dtype, width):
    """70 tokens are two blocks and a part; the mean of the values is far from 0, as in hidden states."""
    if layout == "packed":
        hidden = (torch.randn(70, width) + 3).to(dtype)
        options = dict(cu_seqlens=torch.tensor([0, 1, 34, 66]))
        hidden[66:] = torch.nan
    else:
        hidden = (torch.randn(2, 70, width) + 3).to(dtype)
        options = dict(mask=torch.rand(2, 70) < 0.5)
        hidden[~options["mask"]] = torch.inf
    results = []
    for values, backend in ((hidden, "triton"), (hidden.double(), "reference")):
        values.requires_grad_()
        h, norm = pool(values, how, **options, backend=backend)
        upstream = torch.linspace(-1, 1, h.numel()).reshape(h.shape).to(hidden.dtype if how == "last" else h.dtype)
        (gradient,) = torch.autograd.grad(h, values, upstream.to(h.dtype))
        assert gradient.dtype == values.dtype
        results.append((h, norm, gradient))
    (h, norm, gradient), expected = results
    torch.testing.assert_close(h.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norm.double(), expected[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected[2], rtol=ROUNDING[dtype], atol=1e-7)


STRIDED = {
    "transposed": lambda: torch.randn(9, 2, 6).transpose(0, 1),
    "every other column": lambda: torch.randn(2, 9, 12)[:, :, ::2],
    "every other token": lambda: torch.randn(2, 18, 6)[:, 1::2],
    "an offset": lambda: torch.randn(2 * 9 * 6 + 5)[5:].view(2, 9, 6),
    "one sequence twice": lambda: torch.randn(1, 9, 6).expand(2, 9, 6),
}


@pytest.mark.parametrize("how", ["last", "mean"])
@pytest.mark.parametrize("kind", STRIDED)
def test_strides(how, kind, backend):
    hidden = STRIDED[kind]()
    mask = torch.ones(9, 2, dtype=torch.int32).tril(1).t()  # not contiguous either
    strided, dense = hidden.requires_grad_(), hidden.detach().contiguous().requires_grad_()
    upstream = torch.randn(2, 6)
    results = []
    for values, values_mask in ((strided, mask), (dense, mask.contiguous())):
        h, norm = pool(values, how, values_mask, backend=backend)
        results.append((h, norm, *torch.autograd.grad(h, values, upstream)))
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)


def test_splits_change_only_the_order_of_summation():
    hidden = torch.randn(2, 150, 20) + 3
    mask = torch.rand(2, 150) < 0.7
    cu_seqlens = torch.tensor([0, 3, 200, 260])
    for options in ((hidden, mask, None), (hidden, None, None), (hidden.flatten(0, 1), None, cu_seqlens)):
        single = triton_pooling.mean(*options, splits=1)
        for splits in (2, 5, 40):
            for result, expected in zip(triton_pooling.mean(*options, splits=splits), single, strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["last", "mean"])
def test_a_second_run_is_equal_bit_for_bit(how, backend):
    hidden = torch.randn(2, 100, 10, requires_grad=True)
    upstream = torch.randn(2, 10)

    def run():
        h, norm = pool(hidden, how, backend=backend)
        return h, norm, *torch.autograd.grad(h, hidden, upstream)

    assert all(torch.equal(*pair) for pair in zip(run(), run(), strict=True))


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # the interpreter's 0 / 0
def test_unchecked_an_empty_sequence_is_nan(backend):
    """As on a GPU, where the values of the mask are not checked."""
    last, mean = pooling._implementation(torch.empty(0), backend)
    mask, cu_seqlens = torch.tensor([[0, 1, 0], [0, 0, 0]]), torch.tensor([0, 2, 2])
    for options in ((torch.ones(2, 3, 4), mask, None), (torch.ones(5, 4), None, cu_seqlens)):
        for h, norm, *position in (last(*options), mean(*options)):
            assert (h[0] == 1).all() and h[1].isnan().all() and norm[0] == 2 and norm[1].isnan()
            assert not position or position[0].tolist() == [1, -1]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(how="first"), ValueError, "how must be last or mean, got 'first'"),
        (dict(backend="cuda"), ValueError, "backend must be one of auto, reference, triton, got 'cuda'"),
        (dict(hidden=torch.ones(2, 3, 4).long()), TypeError, "must be floating point, got torch.int64"),
        (dict(hidden=torch.ones(2, 3)), ValueError, r"\[2, 3\] without mask and without cu_seqlens"),
        (dict(cu_seqlens=torch.tensor([0, 2])), ValueError, r"\[2, 3, 4\] without mask and with cu_seqlens"),
        (dict(mask=[[1, 1, 1], [1, 1, 0]]), TypeError, "mask must be a torch.Tensor, got list"),
        (dict(mask=torch.ones(2, 3)), TypeError, "mask must be bool or integer, got torch.float32"),
        (dict(mask=torch.ones(3, 2).long()), ValueError, r"mask must have shape \[2, 3\], got \[3, 2\]"),
        (dict(mask=torch.tensor([[1, 1, 1], [0, 0, 0]])), ValueError, r"row 1 .* token \(1 such rows of 2\)"),
        (dict(hidden=torch.ones(2, 0, 4)), ValueError, r"row 0 .* token \(2 such rows of 2\)"),
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


def test_triton_on_a_cpu_needs_its_interpreter(monkeypatch):
    monkeypatch.setattr(triton_pooling, "INTERPRETED", False)
    with pytest.raises(ValueError, match="with TRITON_INTERPRET=1 set before triton is imported"):
        pool(torch.ones(2, 3, 4), backend="triton")
    assert pool(torch.ones(2, 3, 4).double(), backend="triton")[0].dtype == torch.float64  # PyTorch's works
