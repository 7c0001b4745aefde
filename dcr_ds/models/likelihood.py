"""Log-likelihood of given tokens under a model, without holding the logits of a whole batch.

Logits are tokens × vocabulary: for 8,192 tokens and a vocabulary of 150,000, 4.6 GiB in float32, and the same again for
their gradient. Here the LM head and the cross-entropy are one function over chunks of the supervised positions: in
PyTorch, or with liger-kernel's Triton kernels on a GPU.

Legend: n supervised tokens, c of them in a chunk, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers import PreTrainedConfig, PreTrainedModel

from dcr_ds.errors import UserError
from dcr_ds.models.batches import to_device, token_batch
from dcr_ds.models.chat import Encoded
from dcr_ds.models.tensor_parallel import gather_columns, own_rows

IGNORED = -100  # target of a token that does not count
CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**27}  # c × V: 64 MiB in float32 on a CPU, 512 MiB on a GPU
HELD_BYTES = 3 * 2**30  # of a head's gradient in float32; larger ones are computed in blocks, in the backward pass
BLOCK_BYTES = 2**28  # of such a block in float32
Reduction = Literal["sum", "none"]
Backend = Literal["liger", "chunked"]
Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]  # at hidden states, weight and bias


def resolve_loss_backend(setting: Literal["auto"] | Backend, problem: str) -> tuple[Backend, str]:
    """The implementation of the loss at the head, and a short reason.

    Raises:
        UserError: liger is asked for and cannot work here.
    """
    if setting == "liger" and problem:
        raise UserError(f"align.loss_backend: liger cannot be used: {problem}; say auto or chunked")
    return ("chunked", "larger chunks than liger-kernel's") if setting == "auto" else (setting, "as asked")


def after_head(config: PreTrainedConfig) -> tuple[float, float | None]:
    """What a model does with its logits after the head: a factor (Granite, Cohere), and a cap (Gemma)."""
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return float(scale), getattr(config, "final_logit_softcapping", None)


class Likelihood(torch.nn.Module):
    """A causal language model that returns −log π of tokens instead of logits.

    The head is a module of its own, so that ZeRO-3 gathers it only while it is used. The head of `model`, which may
    have an adapter, is replaced: it returns no logits any more.

    Attributes:
        router_logits: of the last forward pass, one [B · T, experts] per block with a router, if `with_routers`.

    Raises:
        UserError: the head itself has an adapter.
    """

    def __init__(self, model, backend: Backend, with_routers: bool = False):
        super().__init__()
        self.with_routers, self.router_logits = with_routers, ()
        head = model.get_output_embeddings()
        if not isinstance(head, torch.nn.Linear):
            raise UserError(f"align.lora.targets: the output head ({type(head).__name__}) cannot have an adapter")
        scale, softcap = after_head(model.config)
        model.set_output_embeddings(LikelihoodHead(head, scale, softcap, backend))
        self.model = model

    def forward(
        self, where: torch.Tensor, targets: torch.Tensor, reduction: Reduction = "sum", **inputs
    ) -> torch.Tensor:
        """−Σ log π(targets), or −log π of each [n], in float32.

        Args:
            where: positions [n] in the flattened hidden states [B · T, D] whose output predicts a target.
            targets: token ids [n]; IGNORED gives 0.
            inputs: of the decoder: input_ids, attention_mask, position_ids, …
        """
        asked = {"output_router_logits": True} if self.with_routers else {}
        output = self.model.get_decoder()(use_cache=False, **asked, **inputs)
        if self.with_routers:
            self.router_logits = output.router_logits
        hidden = output.last_hidden_state.flatten(0, 1).index_select(0, where)
        return self.model.get_output_embeddings()(hidden, targets, reduction)


@contextmanager
def as_likelihood(model: PreTrainedModel) -> Iterator[Likelihood]:
    """A context in which a model is a Likelihood; afterwards it returns logits again."""
    head = model.get_output_embeddings()
    try:
        yield Likelihood(model, "chunked")
    finally:
        model.set_output_embeddings(head)


def answer_nll(
    model,
    samples: Sequence[Encoded],
    alive: Sequence[bool],
    packed: bool,
    device: torch.device,
    reduction: Reduction,
) -> torch.Tensor:
    """−log π of the supervised tokens of all samples, sample after sample [n], or their sum; in float32.

    Args:
        model: a Likelihood, or an engine around one.
        alive: every token of a sample that is not alive gives 0.
        packed: one row without padding instead of one row per sample.
    """
    batch = token_batch([sample.ids for sample in samples], packed, device)
    where, targets = (to_device(part, device) for part in supervised_positions(samples, alive, batch.starts))
    return model(where=where, targets=targets, reduction=reduction, **batch.inputs)


def supervised_positions(
    samples: Sequence[Encoded], alive: Sequence[bool], starts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions in the flattened [B · T] that predict the supervised tokens, one before each, and the tokens [n].

    The targets of samples that are not alive are IGNORED rather than left out, so that there is always something to
    compute.
    """
    where: list[int] = []
    targets: list[int] = []
    for sample, is_alive, start in zip(samples, alive, starts, strict=True):
        answer = sample.ids[sample.prompt_tokens :]
        first = start + sample.prompt_tokens - 1
        where += range(first, first + len(answer))
        targets += answer if is_alive else [IGNORED] * len(answer)
    return torch.tensor(where), torch.tensor(targets)


class LikelihoodHead(torch.nn.Module):
    """The head of a language model, with its parameters, that returns −log π of targets.

    `scale` of the logits is applied to the hidden states: no model has both a scale and a bias.
    """

    def __init__(self, head: torch.nn.Linear, scale: float, softcap: float | None, backend: Backend):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.scale, self.softcap, self.backend = scale, softcap, backend

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor, reduction: Reduction) -> torch.Tensor:
        if self.scale != 1:
            hidden = hidden * self.scale
        nll = _liger_nll if self.backend == "liger" else linear_nll
        return nll(hidden, self.weight, targets, self.bias, self.softcap, reduction)


def linear_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    reduction: Reduction = "sum",
) -> torch.Tensor:
    """−log softmax(s·tanh((W h + b) / s))[target] of each row [n], or their sum, in float32; s = softcap, if any.

    Products are in the dtype of `hidden`, everything after them and the gradients of weight and bias accumulate in
    float32. The gradient of a sum is computed in the forward pass; for single values, and where it is large (V × D
    above HELD_BYTES: 70B and more), the backward pass recomputes the logits. A large gradient is computed in blocks of
    the vocabulary, in the dtype of the weight: it never exists in float32. It cannot be differentiated again.

    Args:
        hidden: [n, D]; weight: [V, D]; targets: [n], where IGNORED gives 0 and no gradient; bias: [V].
    """
    if reduction == "sum" and torch.is_grad_enabled() and not _is_large(weight):
        return _SummedNll.apply(hidden, weight, bias, targets, softcap)
    nll = _TokenNll.apply(hidden, weight, bias, targets, softcap)
    return nll.sum() if reduction == "sum" else nll


class _SummedNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, softcap):
        nll, gradients = _gradients(hidden, weight, bias, targets, softcap, None, ctx.needs_input_grad)
        ctx.save_for_backward(*gradients)
        ctx.dtype = weight.dtype
        return nll.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        scaled = [None if gradient is None else gradient.mul_(upstream).to(ctx.dtype) for gradient in ctx.saved_tensors]
        return *scaled, None, None


class _TokenNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, softcap):
        ctx.softcap, ctx.in_blocks = softcap, _is_large(weight)
        nll = hidden.new_empty(len(hidden), dtype=torch.float32)
        normaliser = torch.empty_like(nll) if ctx.in_blocks else None
        for rows in _chunks(hidden, weight):
            logits = _logits(hidden[rows], weight, bias, softcap)
            nll[rows] = F.cross_entropy(logits, targets[rows], ignore_index=IGNORED, reduction="none")
            if normaliser is not None:
                normaliser[rows] = logits.logsumexp(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        if ctx.in_blocks:
            return *_gradients_in_blocks(ctx, upstream), None, None
        hidden, weight, bias, targets, _ = ctx.saved_tensors
        _, gradients = _gradients(hidden, weight, bias, targets, ctx.softcap, upstream, ctx.needs_input_grad)
        return *(None if gradient is None else gradient.to(weight.dtype) for gradient in gradients), None, None


def _is_large(weight: torch.Tensor) -> bool:
    return weight.requires_grad and weight.numel() * torch.float32.itemsize > HELD_BYTES


def _gradients_in_blocks(ctx, upstream: torch.Tensor) -> Gradients:
    """The gradients of Σ upstream · value, computed for one block of the vocabulary after the other."""
    hidden, weight, bias, targets, normaliser = ctx.saved_tensors
    of_hidden, _, of_bias, *_ = ctx.needs_input_grad
    scale = upstream * (targets != IGNORED)
    at_hidden = torch.zeros_like(hidden, dtype=torch.float32) if of_hidden else None
    at_weight, at_bias = torch.empty_like(weight), torch.empty_like(bias) if of_bias else None
    size = max(1, BLOCK_BYTES // torch.float32.itemsize // weight.shape[1])
    for start in range(0, len(weight), size):
        block = slice(start, start + size)
        part, part_bias = weight[block], None if bias is None else bias[block]
        total = torch.zeros_like(part, dtype=torch.float32)
        total_bias = total.new_zeros(len(part))
        for rows in _chunks(hidden, part):
            logits = _logits(hidden[rows], part, part_bias, ctx.softcap)
            slope = (logits - normaliser[rows, None]).exp_()
            places = targets[rows] - start
            is_inside = (places >= 0) & (places < len(part))
            slope.scatter_add_(1, places.clamp(0, len(part) - 1)[:, None], -is_inside.float()[:, None])
            if ctx.softcap is not None:
                slope *= 1 - logits.div_(ctx.softcap).square_()
            slope = slope.mul_(scale[rows, None]).to(hidden.dtype)
            _add_product(total, slope.t(), hidden[rows])
            total_bias += slope.sum(0, dtype=torch.float32)
            if at_hidden is not None:
                _add_product(at_hidden[rows], slope, part)
        at_weight[block] = total
        if at_bias is not None:
            at_bias[block] = total_bias
    return None if at_hidden is None else at_hidden.to(hidden.dtype), at_weight, at_bias


def _gradients(hidden, weight, bias, targets, softcap, scale, needed) -> tuple[torch.Tensor, Gradients]:
    """The values [n], and the gradients of Σ scale · value at hidden, weight and bias; None where not needed.

    Its seven parameters are those of the autograd functions above.
    """
    of_hidden, of_weight, of_bias, *_ = needed
    nll = hidden.new_empty(len(hidden), dtype=torch.float32)
    at_hidden = torch.empty_like(hidden) if of_hidden else None
    at_weight = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
    at_bias = torch.zeros_like(bias, dtype=torch.float32) if of_bias else None
    for rows in _chunks(hidden, weight):
        nll[rows], slope = _nll_and_slope(hidden[rows], weight, bias, targets[rows], softcap)
        alive = targets[rows] != IGNORED
        weights = alive.float() if scale is None else scale[rows] * alive
        # one pass over [c, V]: weighted, and rounded to the dtype of the products
        slope = torch.mul(slope, weights[:, None], out=torch.empty_like(slope, dtype=hidden.dtype))
        if at_hidden is not None:
            at_hidden[rows] = slope @ weight
        if at_weight is not None:
            _add_product(at_weight, slope.t(), hidden[rows])
        if at_bias is not None:
            at_bias += slope.sum(0, dtype=torch.float32)
    return nll, (at_hidden, at_weight, at_bias)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a · b to a float32 total."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total += a @ b


def _logits(hidden, weight, bias, softcap: float | None) -> torch.Tensor:
    product = F.linear(hidden, own_rows(weight), bias)
    logits = gather_columns(product, weight).float()
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _nll_and_slope(hidden, weight, bias, targets, softcap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The values [c], and their slope at W h + b [c, V]: softmax minus one at the target, through the cap.

    The slope of an IGNORED token is meaningless: the caller gives it weight 0.
    """
    logits = _logits(hidden, weight, bias, softcap)
    log_p = logits.log_softmax(-1)
    nll = F.nll_loss(log_p, targets, ignore_index=IGNORED, reduction="none")
    slope = log_p.exp_()
    slope.scatter_add_(1, targets.clamp_min(0)[:, None], slope.new_full((len(targets), 1), -1.0))
    if softcap is not None:
        slope *= 1 - logits.div_(softcap).square_()
    return nll, slope


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_LOGITS[hidden.device.type] // len(weight))
    return (slice(start, start + size) for start in range(0, len(hidden), size))


def _liger_nll(hidden, weight, targets, bias, softcap, reduction: Reduction) -> torch.Tensor:
    """`linear_nll` with liger-kernel, which for `none` also computes the logits a second time.

    By default, liger's chunks have as many logits as there are hidden states. As the weight's gradient is read and
    written once per chunk, many small chunks are slow; they are raised to CHUNK_LOGITS.
    """
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    times_hidden = max(1, CHUNK_LOGITS[hidden.device.type] // hidden.numel())
    return LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, targets, bias,
        None, IGNORED, 0.0, 0.0, reduction, softcap,  # class weights, ignored target, z-loss, label smoothing
        False, torch.float32,  # z-loss returned, dtype in which gradients add up
        False, False, False, None, None, times_hidden,  # token scaling, returned metrics, another backend
    )[0]  # fmt: skip
