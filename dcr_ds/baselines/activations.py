"""Activations of prompts that weight edits are computed from.

Legend: n prompts, L blocks, P positions at the end of a prompt, D width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from dcr_ds.baselines.projections import blocks_of
from dcr_ds.errors import UserError
from dcr_ds.models.batches import pad_right
from dcr_ds.models.hooks.states import hidden_of
from dcr_ds.progress import heartbeat

Tokens = Sequence[int]


@torch.no_grad()
def mean_block_inputs(
    model: PreTrainedModel, prompts: Sequence[Tokens], positions: int, batch_size: int
) -> torch.Tensor:
    """Mean input of each block at the last positions of the prompts [P, L, D], summed in float64.

    Args:
        positions: P, at most the length of the shortest prompt.

    Raises:
        UserError: the activations are not finite.
    """
    blocks = list(blocks_of(model).values())
    total = torch.zeros(positions, len(blocks), model.config.hidden_size, dtype=torch.float64)
    places = torch.empty(0, dtype=torch.long)  # [B, P], of the current batch

    def add(index: int):
        def hook(_block, arguments, options) -> None:
            hidden = arguments[0] if arguments else options["hidden_states"]
            rows = torch.arange(len(hidden), device=hidden.device)[:, None]
            total[:, index] += hidden[rows, places.to(hidden.device)].double().sum(0).cpu()

        return hook

    with ExitStack() as hooks:
        for index, block in enumerate(blocks):
            hooks.callback(block.register_forward_pre_hook(add(index), with_kwargs=True).remove)
        for batch in batches_of(prompts, batch_size):
            places = torch.tensor([[len(row) - positions + place for place in range(positions)] for row in batch])
            _run(model, batch)
    _refuse_not_finite(total)
    return total / len(prompts)


@torch.no_grad()
def outputs(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    prompts: Sequence[Tokens],
    pooling: Literal["last", "mean"],
    batch_size: int,
) -> dict[str, torch.Tensor]:
    """The output of each module, pooled over the tokens of each prompt: [n, D] on the CPU, in order of the prompts.

    Args:
        modules: by name; each takes and returns states [B, T, D].
        pooling: the last token of a prompt, or the mean over all its tokens, those of the chat template included.

    Raises:
        UserError: the outputs are not finite.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # as batches_of
    found: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    lengths = torch.empty(0, dtype=torch.long)

    def keep(name: str):
        def hook(_module, _inputs, output: Any) -> None:
            states = hidden_of(output)
            found[name].append(_pooled(states, lengths.to(states.device), pooling).cpu())

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(keep(name)).remove)
        for batch in batches_of(prompts, batch_size):
            lengths = torch.tensor([len(row) for row in batch])
            _run(model, batch)
    places = torch.tensor(order).argsort()
    states = {name: torch.cat(rows)[places] for name, rows in found.items()}
    _refuse_not_finite(*states.values())
    return states


def _refuse_not_finite(*states: torch.Tensor) -> None:
    if not all(part.isfinite().all() for part in states):
        raise UserError("activations of the model are not finite: its weights are damaged; use another copy of it")


def batches_of(prompts: Sequence[Tokens], batch_size: int) -> Iterator[list[Tokens]]:
    """Prompts of similar length, the shortest first."""
    ordered = sorted(prompts, key=len)
    for start in range(0, len(ordered), batch_size):
        heartbeat("reading activations")
        yield ordered[start : start + batch_size]


def _run(model: PreTrainedModel, batch: Sequence[Tokens]) -> None:
    """A forward pass without the head; in a causal model no token attends to the padding on its right."""
    ids, _ = pad_right(batch, 0, model.device)
    model.get_decoder()(input_ids=ids, use_cache=False)


def _pooled(states: torch.Tensor, lengths: torch.Tensor, pooling: str) -> torch.Tensor:
    """[B, T, D] → [B, D], in float32 or float64."""
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    is_token = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
    return (states * is_token[..., None]).sum(1) / lengths[:, None]
