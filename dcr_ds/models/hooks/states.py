"""Outputs of a decoder's blocks at some places of one prompt."""

from collections.abc import Sequence

import torch

Output = torch.Tensor | tuple  # of a block: hidden states, or a tuple that begins with them (transformers 4)


@torch.no_grad()
def block_outputs(decoder, layers: Sequence[int], ids: Sequence[int], places: Sequence[int]) -> torch.Tensor:
    """Outputs [layers, places, D] of blocks, before any final norm, in float32, or float64 of a float64 model.

    Args:
        layers: blocks, counted from 1.
        ids: token ids of one prompt.
        places: indices of its tokens; negative ones count from the end.
    """
    kept: dict[int, torch.Tensor] = {}

    def keeper(layer: int):
        def keep(block, args: tuple, output: Output) -> None:
            hidden = hidden_of(output)[0, list(places)]
            kept[layer] = hidden.to(torch.promote_types(hidden.dtype, torch.float32))

        return keep

    handles = [decoder.layers[layer - 1].register_forward_hook(keeper(layer)) for layer in layers]
    try:
        device = decoder.get_input_embeddings().weight.device
        decoder(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([kept[layer] for layer in layers])


def hidden_of(output: Output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def with_hidden(output: Output, hidden: torch.Tensor) -> Output:
    """The output of a block with other hidden states."""
    return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])
