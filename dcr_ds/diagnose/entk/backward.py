"""Factors of per-sample gradients, from one forward pass and k backward passes, one block at a time.

The forward pass keeps the input of every block. Going down from the logits, each block is run again from its input
(as in activation checkpointing), and the gradients of the k logits at its output are propagated to its input. So only
the factors of one block are in memory.

A batch is padded on the right without a mask: with causal attention no real position sees the padding, and the
gradients at padded positions are zero.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcr_ds.diagnose.entk.layout import Layout, Part
from dcr_ds.diagnose.entk.products import Factor, Outer, Rows, Vector
from dcr_ds.errors import UserError
from dcr_ds.models.batches import pad_right
from dcr_ds.models.hooks.states import hidden_of, with_hidden


class Use(NamedTuple):
    """One call of a module: its input, and the tensors whose gradients are needed."""

    inputs: Tensor
    points: tuple[Tensor, ...]


class Recorder:
    """While active, records the calls of modules in a forward pass."""

    def __init__(self, parts: dict[str, Part]):
        self.parts = parts
        self.uses: dict[str, Use] = {}
        self.stack = ExitStack()

    def __enter__(self) -> "Recorder":
        for name, part in self.parts.items():
            if part.kind == "elementwise norm":
                hook = part.module.register_forward_pre_hook(lambda _, args, name=name: self.expand(name, args[0]))
                self.stack.callback(self.restore, part)
            else:
                hook = part.module.register_forward_hook(lambda _, args, out, name=name: self.keep(name, args[0], out))
            self.stack.callback(hook.remove)
        return self

    def __exit__(self, *_: Any) -> None:
        self.stack.close()

    def keep(self, name: str, inputs: Tensor, *points: Tensor) -> None:
        if name in self.uses:
            raise UserError(f"eNTK: {name} is called more than once in a forward pass; not supported")
        self.uses[name] = Use(inputs.detach(), points)

    def expand(self, name: str, inputs: Tensor) -> None:
        """Replace the parameters of a norm by a copy per prompt; broadcasting then gives gradients per prompt."""
        part, copies = self.parts[name], []
        for key in part.parameters:
            value = getattr(part.module, key).detach()
            shape = (len(inputs), *[1] * (inputs.ndim - 1 - value.ndim), *value.shape)
            copies.append(value.expand(shape).clone().requires_grad_())
            part.module.__dict__[key] = copies[-1]  # found before the entry in _parameters
        self.keep(name, inputs, *copies)

    @staticmethod
    def restore(part: Part) -> None:
        for key in part.parameters:
            part.module.__dict__.pop(key, None)


class BatchPass:
    """The backward pass of a batch of prompts, from the logits down.

    Args:
        prompts: token ids of every prompt.
        k: how many of the largest logits of every prompt.
    """

    def __init__(self, layout: Layout, prompts: Sequence[Sequence[int]], k: int):
        device = layout.head.weight.device
        self.layout, self.k = layout, k
        self.ids, _ = pad_right(prompts, 0, device)
        self.last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        self.calls: list[tuple[tuple, dict]] = []  # of every block
        self.bottom: Tensor | None = None  # input of the first block, with its graph
        self.top: Tensor | None = None  # output of the last block, a leaf
        self.upstream: Tensor  # gradients at the outputs of the next stage [n, k, …]
        self.tied: Factor | None = None
        self.forward()

    def forward(self) -> None:
        """Run the model, and find the tokens with the largest logits."""
        blocks, rows = self.layout.blocks, torch.arange(len(self.ids), device=self.ids.device)
        with ExitStack() as hooks, torch.enable_grad():
            for module in self.layout.embeddings:
                hooks.callback(module.register_forward_hook(self.leave_embedding).remove)
            for block in blocks:
                hook = block.register_forward_pre_hook(self.enter_block, with_kwargs=True)
                hooks.callback(hook.remove)
            hooks.callback(blocks[-1].register_forward_hook(self.leave_last_block).remove)
            hook = self.layout.head.register_forward_pre_hook(lambda _, args: (args[0][rows, self.last][:, None],))
            hooks.callback(hook.remove)
            self.outside = hooks.enter_context(Recorder(self.layout.outside))
            self.logits = self.layout.model(input_ids=self.ids, use_cache=False).logits[:, 0]  # [n, V]
        self.tokens = self.logits.detach().topk(self.k, dim=1).indices  # [n, k]

    def leave_embedding(self, _: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """A leaf per prompt, also where the embeddings of positions are computed once for the batch."""
        return output.detach().expand(len(self.ids), *output.shape[1:]).clone().requires_grad_()

    def enter_block(self, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if not args:
            raise UserError("eNTK: the blocks do not take the hidden states as their first argument; not supported")
        if not self.calls:
            self.bottom = args[0]
        args = (args[0].detach(), *args[1:])
        self.calls.append((args, kwargs))
        return args, kwargs

    def leave_last_block(self, _: nn.Module, args: tuple, output: Any) -> Any:
        self.top = hidden_of(output).detach().requires_grad_()
        return with_hidden(output, self.top)

    def factors(self, stage: str | int) -> dict[str, Factor]:
        """Factors of the parameters above the blocks ("top"), of a block (by index) or below ("bottom"), by name.

        To be called from the top down, without omissions.
        """
        if stage == "top":
            return self.above_blocks()
        if stage == "bottom":
            return self.below_blocks()
        assert isinstance(stage, int)
        args, kwargs = self.calls.pop()
        inputs = args[0].requires_grad_()
        with Recorder(self.layout.inside[stage]) as recorder, torch.enable_grad():
            output = hidden_of(self.layout.blocks[stage](inputs, *args[1:], **kwargs))
        upstream = [self.upstream[:, j] for j in range(self.k)]
        return self.descend([output] * self.k, upstream, inputs, recorder)

    def above_blocks(self) -> dict[str, Factor]:
        outputs = [self.logits.gather(1, self.tokens[:, j : j + 1]).sum() for j in range(self.k)]
        assert self.top is not None
        factors = self.descend(outputs, [None] * self.k, self.top, self.outside)
        del self.logits
        self.tied = factors.pop(self.layout.tied, None) if self.layout.tied else None
        return factors

    def below_blocks(self) -> dict[str, Factor]:
        upstream = [self.upstream[:, j] for j in range(self.k)]
        parts = {name: part for name, part in self.outside.parts.items() if part.kind != "head"}
        self.outside.parts = parts
        assert self.bottom is not None
        _, factors = self.through([self.bottom] * self.k, upstream, None, self.outside)
        if self.tied is not None and self.layout.tied is not None:
            below = factors[self.layout.tied]
            factors[self.layout.tied] = Rows(*(torch.cat(pair, dim=2) for pair in zip(below, self.tied, strict=True)))
        return factors

    def descend(
        self, outputs: Sequence[Tensor], upstream: Sequence[Tensor | None], inputs: Tensor, recorder: Recorder
    ) -> dict[str, Factor]:
        """`through`, with the gradients at the inputs kept for the next stage."""
        at_inputs, factors = self.through(outputs, upstream, inputs, recorder)
        assert at_inputs is not None
        self.upstream = at_inputs
        return factors

    def through(
        self, outputs: Sequence[Tensor], upstream: Sequence[Tensor | None], inputs: Tensor | None, recorder: Recorder
    ) -> tuple[Tensor | None, dict[str, Factor]]:
        """Propagate k gradients from outputs to inputs: the gradients at the inputs [n, k, …] and the factors."""
        names = [name for name in recorder.parts if name in recorder.uses]
        points = [point for name in names for point in recorder.uses[name].points]
        targets = points if inputs is None else [*points, inputs]
        gradients: list[Tensor | None] = [None] * len(targets)
        for j, (output, gradient) in enumerate(zip(outputs, upstream, strict=True)):
            parts = torch.autograd.grad(output, targets, gradient, retain_graph=True, allow_unused=True)
            for place, value in enumerate(parts):
                if value is not None:
                    total = gradients[place]
                    if total is None:
                        total = gradients[place] = value.new_zeros(len(value), self.k, *value.shape[1:])
                    total[:, j] = value
        remaining = iter(gradients)
        factors: dict[str, Factor] = {}
        for name in names:
            use, part = recorder.uses[name], recorder.parts[name]
            at_points = [gradient for _ in use.points if (gradient := next(remaining)) is not None]
            if at_points:  # else not between these outputs and inputs
                factors |= dict(self.factors_of(part, use, at_points))
        return next(remaining, None), factors

    def factors_of(self, part: Part, use: Use, gradients: list[Tensor]) -> Iterator[tuple[str, Factor]]:
        """Factors of the parameters of one part, from its inputs and the gradients at its points."""
        named = part.parameters
        if len(gradients[0]) != len(self.ids):
            raise UserError(f"eNTK: {', '.join(named.values())}: the layer mixes the prompts of a batch; not supported")
        if part.kind == "elementwise norm":
            for name, gradient in zip(named.values(), gradients, strict=True):
                yield name, Vector(working(gradient).flatten(2))
            return
        outputs = working(gradients[0])  # [n, k, …, rows of the weight]
        if part.kind == "head":
            yield from self.head_factors(part, use, outputs)
        elif part.kind == "embedding":
            scale = torch.as_tensor(getattr(part.module, "embed_scale", 1))
            dtype = self.layout.parameters[named["weight"]].dtype
            outputs = outputs * scale.to(dtype).to(outputs)  # rounded as in the module
            ids = use.inputs.expand(outputs.shape[0], outputs.shape[2])
            padding = getattr(part.module, "padding_idx", None)
            if padding is not None:  # autograd leaves that row out
                outputs = outputs * ids.ne(padding)[:, None, :, None]
            yield named["weight"], Rows(ids[:, None].expand(-1, self.k, -1), outputs)
        elif part.kind == "layer norm":
            yield from layer_norm_factors(part, use, outputs)
        else:
            outputs = outputs.flatten(2, -2)
            inputs = working(use.inputs).reshape(len(outputs), -1, use.inputs.shape[-1])
            if "weight" in named:
                yield named["weight"], Outer(outputs, inputs)
            if "bias" in named:
                yield named["bias"], Vector(outputs.sum(dim=2))

    def head_factors(self, part: Part, use: Use, outputs: Tensor) -> Iterator[tuple[str, Factor]]:
        """A logit depends on one output of the head, so one row of the weight has a gradient.

        Args:
            outputs: [n, k, 1, V].
        """
        tokens = self.tokens[:, :, None]  # [n, k, 1]
        slope = outputs[:, :, 0].gather(2, tokens)[..., None]  # [n, k, 1, 1]
        if int(outputs.count_nonzero()) > int(slope.count_nonzero()):
            raise UserError("eNTK: a logit depends on several outputs of the head; not supported")
        if "weight" in part.parameters:
            yield part.parameters["weight"], Rows(tokens, slope * working(use.inputs)[:, None])
        if "bias" in part.parameters:
            yield part.parameters["bias"], Rows(tokens, slope)


def layer_norm_factors(part: Part, use: Use, outputs: Tensor) -> Iterator[tuple[str, Factor]]:
    """Factors of torch's LayerNorm and RMSNorm: the weight's gradient sums gradients times normalised inputs."""
    module, inputs = part.module, working(use.inputs)
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    shape = list(module.normalized_shape)
    if isinstance(module, nn.RMSNorm):
        normalised = F.rms_norm(inputs, shape, None, module.eps)
    else:
        normalised = F.layer_norm(inputs, shape, eps=module.eps)
    axes = tuple(range(2, outputs.ndim - len(shape)))
    if "weight" in part.parameters:
        yield part.parameters["weight"], Vector((outputs * normalised[:, None]).sum(dim=axes).flatten(2))
    if "bias" in part.parameters:
        yield part.parameters["bias"], Vector(outputs.sum(dim=axes).flatten(2))


def working(tensor: Tensor) -> Tensor:
    """The tensor in the precision in which products are accumulated: float64 for float64, else float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
