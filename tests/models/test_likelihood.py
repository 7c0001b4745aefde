"""−log π at the head equals the cross-entropy of full logits in value and gradient, without storing full logits."""

import pytest
import torch
import torch.nn.functional as F
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.errors import UserError
from dcr_ds.models import likelihood
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.likelihood import IGNORED, Likelihood, linear_nll, resolve_loss_backend
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.recipe import LoraSection

TOKENS, WIDTH, VOCABULARY = 23, 16, 50
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton's interpreter cannot run liger's cap")
OPTIONS = pytest.mark.parametrize("reduction", ["sum", "none"])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setitem(likelihood.CHUNK_LOGITS, "cpu", 5 * VOCABULARY)


def inputs(dtype=torch.float32, bias=False):
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,))
    targets[[0, 7]] = IGNORED
    return hidden, weight, targets, torch.randn(VOCABULARY).to(dtype).requires_grad_() if bias else None


def whole(hidden, weight, targets, bias=None, softcap=None, reduction="sum"):
    """From the logits of all tokens, in float64."""
    logits = F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction=reduction)


def gradients(function, leaves, *arguments):
    """The value, and the gradients of 0.3 times it, weighted by token if it is a value per token."""
    value = function(*arguments)
    weights = torch.linspace(-1, 2, TOKENS, device=value.device) if value.dim() else 0.3
    return value, torch.autograd.grad((value * weights).sum(), leaves)


@OPTIONS
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("block", [None, 1, 7, 50, 1000], ids=lambda rows: f"blocks of {rows}")
def test_value_and_gradient_equal_those_of_full_logits(reduction, bias, softcap, block, monkeypatch):
    if block is not None:
        monkeypatch.setattr(likelihood, "HELD_BYTES", 0)
        monkeypatch.setattr(likelihood, "BLOCK_BYTES", 4 * WIDTH * block)
    hidden, weight, targets, bias = inputs(bias=bias)
    leaves = [hidden, weight] if bias is None else [hidden, weight, bias]
    arguments = (hidden, weight, targets, bias, softcap, reduction)
    expected, expected_gradients = gradients(whole, leaves, *arguments)
    value, value_gradients = gradients(linear_nll, leaves, *arguments)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    for gradient, expected_gradient in zip(value_gradients, expected_gradients, strict=True):
        largest = 1.0 if block is None else float(expected_gradient.abs().max())  # blocks round after each sum
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6 * largest)


@OPTIONS
def test_the_value_is_the_same_without_gradients(reduction):
    hidden, weight, targets, _ = inputs()
    with torch.no_grad():
        without = linear_nll(hidden, weight, targets, reduction=reduction)
    torch.testing.assert_close(without, linear_nll(hidden, weight, targets, reduction=reduction).detach())


@OPTIONS
def test_a_frozen_head_gets_no_gradient(reduction):
    hidden, weight, targets, _ = inputs()
    expected = torch.autograd.grad(linear_nll(hidden, weight, targets, reduction=reduction).sum(), hidden)[0]
    weight.requires_grad_(False)
    linear_nll(hidden, weight, targets, reduction=reduction).sum().backward()
    assert weight.grad is None and torch.equal(hidden.grad, expected)


@OPTIONS
def test_only_ignored_tokens_give_zero(reduction):
    hidden, weight, targets, _ = inputs()
    value = linear_nll(hidden, weight, torch.full_like(targets, IGNORED), reduction=reduction)
    value.sum().backward()
    assert not value.any() and not hidden.grad.any() and not weight.grad.any()


@OPTIONS
def test_a_double_backward_raises(reduction):
    """Differentiated again, the gradient would lack what depends on the hidden states, without a word."""
    hidden, weight, targets, _ = inputs()
    factor = torch.ones((), requires_grad=True)
    value = factor * linear_nll(hidden, weight, targets, reduction=reduction).sum()
    (gradient,) = torch.autograd.grad(value, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_bfloat16_weight_gradients_are_summed_in_float32(monkeypatch):
    """With one token per chunk, summing in bfloat16 would lose most of each term after a few hundred."""
    monkeypatch.setitem(likelihood.CHUNK_LOGITS, "cpu", 1)
    torch.manual_seed(0)
    hidden = torch.ones(2000, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(16, 8, dtype=torch.bfloat16, requires_grad=True)
    value = linear_nll(hidden, weight, torch.zeros(2000, dtype=torch.long))
    value.backward()
    assert value.dtype == torch.float32 and weight.grad.dtype == torch.bfloat16
    assert weight.grad[0].tolist() == pytest.approx([-2000 * 15 / 16] * 8, rel=0.01)
    assert weight.grad[1].tolist() == pytest.approx([2000 / 16] * 8, rel=0.01)


@OPTIONS
def test_logits_of_all_tokens_are_never_in_memory(monkeypatch, reduction):
    from dcr_ds.plan.live_bytes import LiveBytes

    num_tokens, vocabulary = 400, 1000
    monkeypatch.setitem(likelihood.CHUNK_LOGITS, "cpu", 10 * vocabulary)
    hidden, weight = torch.randn(num_tokens, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    targets = torch.randint(vocabulary, (num_tokens,))

    def peak(function) -> int:
        with LiveBytes() as live:
            before = live.alive
            function(hidden, weight, targets, reduction=reduction).sum().backward()
            return live.peak - before

    def plain(hidden, weight, targets, reduction):
        return F.cross_entropy(F.linear(hidden, weight), targets, reduction=reduction)

    logits = num_tokens * vocabulary * 4
    assert peak(plain) >= 2 * logits
    assert peak(linear_nll) < 0.3 * logits


@OPTIONS
@pytest.mark.parametrize("softcap", [None, pytest.param(3.0, marks=needs_gpu)])
@pytest.mark.parametrize("frozen", [False, True])
def test_liger_agrees_with_chunked(reduction, softcap, frozen):
    """It runs in Triton's interpreter without a GPU."""
    pytest.importorskip("liger_kernel")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, weight, targets, _ = (value if value is None else value.detach().to(device) for value in inputs())
    hidden.requires_grad_(), weight.requires_grad_(not frozen)
    leaves = [hidden] if frozen else [hidden, weight]
    arguments = (hidden, weight, targets, None, softcap, reduction)
    value, slopes = gradients(likelihood._liger_nll, leaves, *arguments)
    expected, expected_slopes = gradients(linear_nll, leaves, *arguments)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        torch.testing.assert_close(slope, expected_slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model_type", "tied"), [("llama", True), ("llama", False), ("phi3", False), ("gemma2", True)])
def test_a_model_gives_the_likelihood_of_its_logits(tmp_path, model_type, tied):
    more = {"final_logit_softcapping": 2.0} if model_type == "gemma2" else {}
    folder = make_model(tmp_path, model_type, tied=tied, **more)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = torch.randint(3, 250, (2, 12))
    where, targets = torch.tensor([2, 3, 17]), ids.flatten()[[3, 4, 18]]
    expected = F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1)[where], targets, reduction="sum")
    expected.backward()
    expected_gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    nll = Likelihood(model, "chunked")(where, targets, input_ids=ids)
    nll.backward()
    assert nll.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_gradients[name], rtol=1e-4, atol=1e-5)


def test_an_adapter_on_the_head_is_refused(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path, tied=False))
    with pytest.raises(UserError, match=r"align.lora.targets: the output head"):
        Likelihood(add_lora(model, LoraSection(targets=["q_proj", "lm_head"]), "align.lora"), "chunked")


def test_the_backend_is_chosen_by_the_device():
    assert {resolve_loss_backend(backend, "no GPU")[0] for backend in ("auto", "chunked")} == {"chunked"}
    with pytest.raises(UserError, match="align.loss_backend: liger cannot be used: no GPU"):
        resolve_loss_backend("liger", "no GPU")


@OPTIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_gradient_never_exists_in_float32(reduction, dtype, monkeypatch):
    width, vocabulary = 64, 4000
    monkeypatch.setitem(likelihood.CHUNK_LOGITS, "cpu", 2**15)
    hidden = torch.randn(30, width).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (30,))

    def peak_and_gradients():
        hidden.grad = weight.grad = None
        with LiveBytes() as live:
            before = live.alive
            linear_nll(hidden, weight, targets, reduction=reduction).sum().backward()
        return live.peak - before, hidden.grad, weight.grad

    usual, *expected = peak_and_gradients()
    monkeypatch.setattr(likelihood, "HELD_BYTES", 0)
    monkeypatch.setattr(likelihood, "BLOCK_BYTES", 2**15)
    bounded, *found = peak_and_gradients()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=tolerance, atol=tolerance)
    assert bounded <= weight.nbytes + 8 * 2**15 * 4
    assert usual >= vocabulary * width * (4 + dtype.itemsize * (dtype != torch.float32))
