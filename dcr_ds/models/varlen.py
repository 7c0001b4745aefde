"""Attention over packed rows on a GPU without flash-attn: the variable-length kernel that PyTorch ships.

Legend: N tokens of all rows, H heads, K key-value heads, d head width.
"""

import torch
from transformers import AttentionInterface

from dcr_ds.recipe import ModelSection

NAME = "torch_varlen"  # among transformers' attention functions
TORCH = (2, 11)  # the first whose varlen_attn takes a window and a scale


def has_varlen_kernel(device: torch.device) -> bool:
    """Return whether PyTorch's variable-length kernel can be used on a device, in bfloat16."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and version >= TORCH


def packed_attention(attention: str, dtype: str, has_varlen: bool) -> tuple[str, str]:
    """Choose the attention function for packed rows, and give the reason.

    flash_attention_2 reads the cumulative lengths of the rows. For sdpa and eager transformers builds a block-diagonal
    mask from the positions: exact, but quadratic in the length of the packed row in time and memory, so PyTorch's
    kernel replaces sdpa where it can be used.

    Args:
        attention, dtype: of the resolved recipe.
        has_varlen: whether the variable-length kernel can be used on this device.
    """
    if attention == "flash_attention_2":
        return attention, "the cumulative lengths that flash-attn reads"
    if attention == "sdpa" and dtype == "bfloat16" and has_varlen:
        return NAME, "PyTorch's variable-length kernel"
    return attention, "a block-diagonal mask"


def stage_attention(model: ModelSection, packing: bool, device: torch.device) -> str:
    """Return the attention function that a stage of a resolved recipe trains with."""
    return packed_attention(model.attention, model.dtype, has_varlen_kernel(device))[0] if packing else model.attention


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each packed row: query [1, H, N, d], key and value [1, K, N, d] → [1, N, H, d].

    Raises:
        ValueError: dropout or capped logits are asked for, which the kernel does not have.
    """
    from torch.nn.attention.varlen import varlen_attn

    if dropout or softcap:
        raise ValueError("the variable-length kernel has neither dropout nor capped logits")
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # [N, heads, d]
    if key.shape[1] != query.shape[1]:  # grouped queries; torch 2.11 does not promise to take them as they are
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
    window = (sliding_window - 1 if sliding_window else -1, 0)  # keys before a query, and after it
    output = varlen_attn(
        query,
        key,
        value,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=window,
    )
    assert isinstance(output, torch.Tensor)  # a tuple only where the log-sum-exp is asked for
    return output[None], None


AttentionInterface.register(NAME, varlen_attention)
