"""Masks of packed rows for architectures whose forward pass ignores positions when it builds them."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

# transformers 5.24 calls its mask functions without position_ids there, so packed rows would attend to each other
IGNORES_POSITIONS = ("gpt_oss",)


def separate_packed_rows(model: PreTrainedModel) -> PreTrainedModel:
    """Give the decoder the block-diagonal masks of packed rows where it would not build them; returns the model."""
    if model.config.model_type in IGNORES_POSITIONS:
        model.get_decoder().register_forward_pre_hook(_add_masks, with_kwargs=True)
    return model


def _add_masks(decoder: Any, positional: tuple, given: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    if "cu_seq_lens_q" not in given or given.get("attention_mask") is not None:
        return None
    positions = given["position_ids"]
    weight = decoder.get_input_embeddings().weight
    like_embeddings = torch.empty(*positions.shape, 0, dtype=weight.dtype, device=positions.device)
    masks = create_masks_for_generate(decoder.config, like_embeddings, None, None, positions)
    return positional, given | {"attention_mask": masks}
