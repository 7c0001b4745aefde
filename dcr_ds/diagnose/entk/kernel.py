"""Exact eNTK of a causal language model, without storing per-sample gradients.

K(x', x) = J(x') J(x)ᵀ, with J(x) the Jacobian of the k largest logits of the first answer token of prompt x with
respect to the selected parameters (Lu et al., arXiv 2603.03323). A sample is one logit of one prompt.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist
from transformers import PreTrainedModel

from dcr_ds.diagnose.entk.backward import BatchPass
from dcr_ds.diagnose.entk.layout import Layout, frozen, read_layout
from dcr_ds.diagnose.entk.products import Factor, Outer, Rows, Vector, add_products
from dcr_ds.diagnose.entk.result import EntkResult, make_result
from dcr_ds.errors import UserError
from dcr_ds.models.limits import context_of

if TYPE_CHECKING:
    from peft import PeftModel

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-2}  # relative, of the self-check; 0.2 in other precisions
KINDS = (Outer, Rows, Vector)


def entk(
    model: "PreTrainedModel | PeftModel",
    prompts_by_category: dict[str, list[list[int]]],
    k: int = 10,
    parameters: str = "all",
    batch_size: int = 8,
) -> EntkResult:
    """Compute the eNTK between prompts of at least two categories, and its means per pair of categories.

    Cost, for N prompts of T tokens, P parameters, and D output features of all linear layers of a block together:

    - time: N forward passes, N·k backward passes without weight gradients, and N²/2 products, each per layer the
      cheaper of 2·k²·P FLOP and about 2·T²·(k·D + inputs) + 2·k²·T·D FLOP. See benchmarks/entk.py.
    - memory: N·k·T·D values for one block at a time, and N·T·width·blocks for the inputs of the blocks.

    With torch.distributed initialised, every rank calls this with the same arguments; prompts and products are divided
    among the ranks, and all get the same result.

    The gradients of a bf16 model carry the rounding of bf16; load it in float32 where memory allows. Products are
    accumulated in float32, for float64 models in float64.

    Args:
        model: a causal language model of transformers, also with LoRA adapters.
        prompts_by_category: token ids of the prompts in their chat template, up to where the answer starts.
        k: number of largest logits per prompt.
        parameters: "all", "blocks<=N", "blocks>N" (blocks 1 to L, without embeddings and head) or a regular expression
            on parameter names.
        batch_size: prompts per forward pass.

    Raises:
        UserError: for bad arguments, a model that the method does not cover, and results that are not finite.
    """
    layout = check_entk(model, prompts_by_category, k, parameters)
    prompts = [prompt for category in prompts_by_category.values() for prompt in category]
    with frozen(layout.model):
        gram, tokens = sample_products(layout, prompts, k, batch_size)
    norms = gram.view(len(prompts), k, len(prompts), k).square().sum(dim=(1, 3)).sqrt()
    result = make_result(norms.cpu().numpy(), {name: len(rows) for name, rows in prompts_by_category.items()})
    count = sum(parameter.numel() for parameter in layout.parameters.values())
    return EntkResult(**result, k=k, parameters=parameters, parameter_count=count, tokens=tokens.cpu().numpy())


def check_entk(
    model: "PreTrainedModel | PeftModel", prompts_by_category: dict[str, list[list[int]]], k: int, parameters: str
) -> Layout:
    """The layout of a model, which may be on the meta device.

    Raises:
        UserError: for bad arguments, and a model that the method does not cover.
    """
    layout = read_layout(model, parameters)
    check_prompts(layout, prompts_by_category, k)
    return layout


def check_prompts(layout: Layout, prompts_by_category: dict[str, list[list[int]]], k: int) -> None:
    """Refuse prompts and a k for which there is no result."""
    vocabulary = len(layout.head.weight)
    longest = context_of(layout.model.config.get_text_config().to_dict())
    if not 1 <= k <= vocabulary:
        raise UserError(f"eNTK: k is {k}; it must be between 1 and the size of the vocabulary, {vocabulary}")
    if len(prompts_by_category) < 2:
        names = ", ".join(map(repr, prompts_by_category)) or "none"
        raise UserError(f"eNTK: prompts of at least two categories are needed; given: {names}")
    for category, prompts in prompts_by_category.items():
        if len(prompts) < 2:
            raise UserError(f"eNTK: category {category!r} needs at least 2 prompts; it has {len(prompts)}")
        for number, prompt in enumerate(prompts, start=1):
            where = f"eNTK: prompt {number} of category {category!r}"
            if not prompt:
                raise UserError(f"{where} has no tokens")
            if longest and len(prompt) > longest:
                raise UserError(f"{where} has {len(prompt)} tokens, but the model takes {longest}; shorten or drop it")
            if min(prompt) < 0 or max(prompt) >= vocabulary:
                raise UserError(f"{where} has token ids outside 0 to {vocabulary - 1}; use the model's own tokenizer")


def sample_products(layout: Layout, prompts: list[list[int]], k: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Inner products of the gradients of all samples [N · k, N · k], and the tokens of the logits [N, k]."""
    rank, world = share = this_rank()
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    size = max(1, min(batch_size, len(prompts) // world))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    own = batches[rank::world]
    passes = [BatchPass(layout, [prompts[index] for index in batch], k) for batch in own]
    tokens = collect_tokens((len(prompts), k), layout, own, passes)

    samples = (torch.tensor(order)[:, None] * k + torch.arange(k)).flatten().to(tokens.device)
    gram = torch.zeros(len(samples), len(samples), dtype=torch.float64, device=tokens.device)
    squares = dict.fromkeys(layout.parameters, 0.0)  # squared norm of the first sample's gradient
    for stage in stages(layout):
        factors_of_batches = [batch_pass.factors(stage) for batch_pass in passes]
        for name, factors in shared_factors(factors_of_batches, len(batches), tokens.device):
            before = gram[0, 0].item()
            add_products(gram, factors, share)
            squares[name] += gram[0, 0].item() - before
    gram = sum_over_ranks(gram.triu())
    refuse_not_finite(~gram.isfinite().all(dim=1), "gradients")
    compare_with_autograd(layout, prompts[order[0]], int(tokens[order[0], 0]), squares)
    result = torch.empty_like(gram)
    result[samples[:, None], samples] = gram + gram.triu(1).T
    return result, tokens


def collect_tokens(shape: tuple[int, int], layout: Layout, own: list[list[int]], passes: list[BatchPass]) -> Tensor:
    """The tokens of the largest logits of all prompts [N, k]; logits that are not finite are refused on all ranks."""
    device = layout.head.weight.device
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    broken = torch.zeros(shape[0], dtype=torch.long, device=device)
    for batch, batch_pass in zip(own, passes, strict=True):
        tokens[batch] = batch_pass.tokens
        broken[batch] = (~batch_pass.logits.detach().isfinite().all(dim=1)).long()
    refuse_not_finite(sum_over_ranks(broken), "logits")
    return sum_over_ranks(tokens)


def refuse_not_finite(broken: Tensor, what: str) -> None:
    if broken.any():
        raise UserError(
            f"eNTK: {what} are not finite for some prompts; load the model in float32, or check its weights"
        )


def stages(layout: Layout) -> list[str | int]:
    """Parts of the model from the top down to the lowest that has selected parameters."""
    below = any(part.kind != "head" for part in layout.outside.values())
    return ["top", *range(len(layout.blocks) - 1, layout.lowest - 1, -1), *(["bottom"] if below else [])]


def compare_with_autograd(layout: Layout, prompt: list[int], token: int, squares: dict[str, float]) -> None:
    """Compare the squared gradients of one logit of one prompt with those of a plain backward pass.

    It detects models that use a parameter in a way the method does not know.
    """
    device, named = layout.head.weight.device, layout.parameters
    measured = sum_over_ranks(torch.tensor([squares[name] for name in named], dtype=torch.float64, device=device))
    expected = torch.zeros_like(measured)
    handles = []
    for index, parameter in enumerate(named.values()):

        def keep_norm(parameter: Tensor, index: int = index) -> None:
            assert parameter.grad is not None  # the hook runs after it was accumulated
            expected[index] = parameter.grad.double().square().sum()
            parameter.grad = None

        parameter.requires_grad_(True).grad = None
        handles.append(parameter.register_post_accumulate_grad_hook(keep_norm))
    with torch.enable_grad():
        layout.model(input_ids=torch.tensor([prompt], device=device), use_cache=False).logits[0, -1, token].backward()
    for handle in handles:
        handle.remove()
    tolerance = TOLERANCE.get(layout.head.weight.dtype, 0.2)
    wrong = (measured - expected).abs() > tolerance * expected.clamp(min=1e-3 * float(expected.sum()))
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise UserError(
            f"eNTK: the gradient of {list(named)[index]} differs from autograd's (squared norm {measured[index]:.4g}, "
            f"autograd {expected[index]:.4g}); {type(layout.model).__name__} uses this parameter in an unsupported way"
        )


def this_rank() -> tuple[int, int]:
    """Rank and world size."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def shared_factors(
    own: list[dict[str, Factor]], batches: int, device: torch.device
) -> Iterator[tuple[str, list[Factor]]]:
    """The factors of all batches, one parameter at a time; batch i belongs to rank i mod world size."""
    rank, world = this_rank()
    if world == 1:
        yield from ((name, [factors[name] for factors in own]) for name in own[0])
        return
    headers: list[list[dict]] = [[] for _ in range(world)]
    dist.all_gather_object(
        headers, [{name: header_of(factor) for name, factor in factors_of_rank.items()} for factors_of_rank in own]
    )
    for name in headers[0][0]:
        factors = []
        for batch in range(batches):
            owner, index = batch % world, batch // world
            kind, layouts = headers[owner][index][name]
            local = (
                own[index][name]
                if owner == rank
                else [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in layouts]
            )
            tensors = [tensor.contiguous() for tensor in local]
            for tensor in tensors:
                dist.broadcast(tensor, owner)
            factors.append(KINDS[kind](*tensors))
        yield name, factors


def header_of(factor: Factor) -> tuple[int, list[tuple[tuple[int, ...], torch.dtype]]]:
    """What another rank must know to receive a factor: its kind, and the shape and dtype of its tensors."""
    return KINDS.index(type(factor)), [(tuple(tensor.shape), tensor.dtype) for tensor in factor]
