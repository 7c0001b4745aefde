"""The contrastive losses that contrastive.py compares; its docstring describes each provider."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import dcr_kernels
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

OURS = ("chunked", "triton", "triton_graph", "chunked_tf32", "triton_tf32")
TF32 = ("pml_tf32", "eager_tf32", "compile", "compile_bf16", "chunked_tf32", "triton_tf32")
PROVIDERS = ("pml", "pml_fp32", "eager", "gemm3", *dict.fromkeys((*TF32, *OURS)))
PAIR_BYTES = {"pml": 57, "eager": 38, "compile": 14}  # measured for Circle loss; similar for the others
ON_CPU = ("pml", "eager", "compile", "chunked", "gemm3")
ON_GPU = ("pml", "pml_fp32", "pml_tf32", "eager", "compile", "compile_bf16", "chunked", "triton", "gemm3")
LOSSES = ("circle", "supcon", "ntxent", "triplet")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MARGIN, TEMPERATURE, TRIPLET_MARGIN = 0.25, 0.1, 0.2  # the defaults of dcr_kernels
PRODUCT_ROWS = 1024


@dataclass(frozen=True)
class Setting:
    """The problem that the providers solve."""

    n: int
    d: int
    loss: str
    dtype: str
    classes: int
    data: str
    scale: float
    threads: int
    device: str

    def rows(self) -> Tensor:
        """Random h [N, D]; `rogue`: four nearly constant dimensions make up 4/5 of the squared norm, as in LLMs."""
        generator = torch.Generator(self.device).manual_seed(0)
        h = torch.randn(self.n, self.d, device=self.device, generator=generator)
        if self.data == "rogue":
            h[:, :4] = (1 + 0.1 * h[:, :4]) * math.sqrt(self.d)
        return h.to(DTYPES[self.dtype]).requires_grad_()

    def labels(self, seed: int) -> Tensor:
        """Labels [N] in random order, with classes of equal size."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randperm(self.n, device=self.device, generator=generator) % self.classes


def build(name: str, setting: Setting) -> Callable[..., Tensor]:
    """The provider as a function of h and labels."""
    base = name.removesuffix("_tf32")
    if base == "triton_graph":
        return torch.cuda.make_graphed_callables(loss_of(setting, "triton"), (setting.rows(), setting.labels(0)))
    if base == "gemm3":
        return lambda h, labels: ThreeProducts.apply(h)
    if base in ("pml", "pml_fp32"):
        loss = metric_learning(setting)
        return loss if name == "pml" else lambda h, labels: loss(h.float(), labels)
    if base in OURS:
        return loss_of(setting, base)
    loss = loss_of(setting, "reference")
    if base == "eager":
        return loss
    compiled = torch.compile(loss, dynamic=False)
    return compiled if base == "compile" else with_bf16_products(compiled)


def loss_of(setting: Setting, backend: str) -> Callable[..., Tensor]:
    options = {"margin": MARGIN, "scale": setting.scale} if setting.loss == "circle" else {}
    return partial(getattr(dcr_kernels, f"{setting.loss}_loss"), backend=backend, **options)


def metric_learning(setting: Setting) -> Callable[..., Tensor]:
    """The same loss from pytorch-metric-learning."""
    from pytorch_metric_learning import distances, losses, miners

    if setting.loss == "circle":
        return losses.CircleLoss(m=MARGIN, gamma=setting.scale)
    if setting.loss == "supcon":
        return losses.SupConLoss(temperature=TEMPERATURE)
    if setting.loss == "triplet":
        cosine = distances.CosineSimilarity()
        miner = miners.BatchHardMiner(distance=cosine)
        criterion = losses.TripletMarginLoss(margin=TRIPLET_MARGIN, distance=cosine)
        return lambda h, labels: criterion(h, labels, miner(h, labels))
    return losses.NTXentLoss(temperature=TEMPERATURE)


class ThreeProducts(torch.autograd.Function):
    """Computes the similarities, and in the backward pass again the similarities and then the gradient, in chunks."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        for rows in h.split(PRODUCT_ROWS):
            rows @ h.T
        return h.new_ones(())

    @staticmethod
    def backward(ctx, _) -> Tensor:
        (h,) = ctx.saved_tensors
        return torch.cat([(rows @ h.T) @ h for rows in h.split(PRODUCT_ROWS)])


class Bf16Products(TorchFunctionMode):
    """Rounds the factors and results of matrix products to bf16, as code written for speed does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            return function(*(factor.bfloat16() for factor in args)).float()
        return function(*args, **(kwargs or {}))


def with_bf16_products(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*arguments: Tensor) -> Tensor:
        with Bf16Products():
            return loss(*arguments)

    return run


def needed_bytes(name: str, setting: Setting) -> float:
    """Estimated memory of a provider that keeps N×N matrices; 0 for the others."""
    base = name.partition("_")[0]
    pairs = setting.n**2
    if base == "pml" and setting.loss == "ntxent":  # a matrix of positive × negative pairs
        return 16 * (pairs / setting.classes) * pairs * (1 - 1 / setting.classes)
    return PAIR_BYTES.get(base, 0) * pairs
