"""Hidden states after prompts and after every inner node of a prefix tree, in as few tokens as possible.

What all prompts begin with (a system prompt, the header of the turn) is computed once and cached. Then one pass runs
over the rest of each prompt and the nodes of the tree behind it, with a mask by which a node sees the prompt and its
own ancestors. Where the model has just answered the prompts, the cache of the answers holds all but their last token.
Models with layers that such a mask does not reach (sliding windows, recurrent layers) and other attention kernels take
two passes: over the prompts, and over the paths of the tree from a repeated key-value cache.

Legend: B prompts, W width of a batch, K cached tokens, N inner nodes with the root, P paths of depth d, D width.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from dcr_ds.diagnose.prefix_tree import Tree
from dcr_ds.models.batches import num_shared_tokens, pad_left, pad_right


class TreePass:
    """Runs the decoder of a model over batches of the given prompts, of which it computes the beginning once."""

    def __init__(self, decoder, tree: Tree, prompts: Sequence[Sequence[int]] = ()):
        self.decoder, self.tree = decoder, tree
        self.device = decoder.get_input_embeddings().weight.device
        # transformers 5 renames the argument
        takes = inspect.signature(decoder.forward).parameters
        self.cache_name = "cache" if "cache" in takes else "past_key_values"
        cache = DynamicCache(config=decoder.config)
        self.by_mask = all(type(layer) is DynamicLayer for layer in cache.layers) and (
            decoder.config._attn_implementation in ("sdpa", "eager")
        )
        # states of linear attention cannot be repeated
        self.repeats = all(hasattr(layer, "batch_repeat_interleave") for layer in cache.layers)
        self.shared = tuple(prompts[0][: num_shared_tokens(prompts)]) if self.by_mask and prompts else ()
        if self.shared:
            decoder(input_ids=torch.tensor([self.shared], device=self.device), **{self.cache_name: cache})
        self.cache = cache

    def tokens(self, length: int) -> int:
        """Tokens in the cache for one prompt of a length."""
        if self.by_mask:
            return length + len(self.tree.nodes)
        return max(1, len(self.tree.paths)) * (length + max(map(len, self.tree.paths), default=0))

    def __call__(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Hidden states [B, N, D] after the prompts and after each inner node, in the order of the tree."""
        cache = copy.deepcopy(self.cache)
        if self.shared:
            cache.batch_repeat_interleave(len(prompts))
        tokens, place = self._padded([prompt[len(self.shared) :] for prompt in prompts])
        if not self.by_mask:
            return self._repeated(tokens, place, cache) if self.repeats else self._whole_rows(tokens, place)
        return self._masked(tokens, place, torch.ones(len(prompts), len(self.shared), device=self.device) > 0, cache)

    def after_answers(self, prompts: Sequence[Sequence[int]], lead: Sequence[int], cache: Cache) -> torch.Tensor | None:
        """The same of prompts with a lead, from the cache that their left-padded answers left behind.

        The cache is cut to the prompts and consumed. None where that cannot be done for this model or cache.
        """
        layers: list[Any] = [layer for layer in cache.layers if type(layer) is DynamicLayer and layer.is_initialized]
        if not self.by_mask or len(layers) < len(cache.layers):
            return None
        lengths = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        width = max(map(len, prompts)) - 1
        for layer in layers:
            layer.keys, layer.values = layer.keys[:, :, :width], layer.values[:, :, :width]
        tokens, place = self._padded([[prompt[-1], *lead] for prompt in prompts])
        return self._masked(tokens, place, torch.arange(width, device=self.device) >= width - lengths[:, None], cache)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded tokens [B, W] and their places [B, W], below 0 for padding."""
        tokens, mask = pad_left(rows, 0, self.device)
        return tokens, mask.cumsum(1) - 1

    def _masked(self, tokens: torch.Tensor, place: torch.Tensor, cached: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Hidden states [B, N, D] after tokens that follow a cache; `cached` [B, K] is False for its padding."""
        nodes, (size, width), before = self.tree.nodes[1:], tokens.shape, cached.shape[1]
        ahead = torch.tensor([node[-1] for node in nodes], dtype=tokens.dtype, device=self.device)
        depth = torch.tensor([len(node) for node in nodes], dtype=place.dtype, device=self.device)
        place = torch.cat([place, place[:, -1:] + depth], dim=1)  # [B, W + N − 1]
        sees = torch.ones(width + len(nodes), before + width + len(nodes), dtype=torch.bool, device=self.device)
        sees[:width, before:] = sees[:width, before:].tril()
        if nodes:
            sees[width:, before + width :] = torch.tensor(self.tree.ancestors(), device=self.device)
        sees = sees & torch.cat([cached, place >= 0], dim=1)[:, None, :]
        sees.diagonal(before, dim1=1, dim2=2).fill_(True)  # padding sees itself: a row of nothing is NaN
        mask = torch.zeros(sees.shape, dtype=self.decoder.dtype, device=self.device)
        mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)
        hidden = self.decoder(
            input_ids=torch.cat([tokens, ahead.expand(size, -1)], dim=1),
            attention_mask=mask[:, None],
            position_ids=place.clamp_min(0) + cached.sum(1, keepdim=True),
            **{self.cache_name: cache},
        ).last_hidden_state
        return hidden[:, width - 1 :]

    def _repeated(self, tokens: torch.Tensor, place: torch.Tensor, cache: Cache) -> torch.Tensor:
        mask = (place >= 0).long()
        root = self.decoder(
            input_ids=tokens, attention_mask=mask, position_ids=place.clamp_min(0), **{self.cache_name: cache}
        ).last_hidden_state[:, -1:]
        if not self.tree.paths:
            return root
        ahead = self._paths()
        paths, depth = ahead.shape
        cache.batch_repeat_interleave(paths)
        behind = place[:, -1:] + 1 + torch.arange(depth, device=self.device)  # [B, d]
        later = self.decoder(
            input_ids=ahead.repeat(len(tokens), 1),
            attention_mask=F.pad(mask.repeat_interleave(paths, 0), (0, depth), value=1),
            position_ids=behind.repeat_interleave(paths, 0),
            **{self.cache_name: cache},
        ).last_hidden_state.unflatten(0, (len(tokens), paths))  # [B, P, d, D]
        return torch.cat([root, self._at_nodes(later)], dim=1)

    def _whole_rows(self, tokens: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The same without a cache: every prompt is computed with every path."""
        ahead = self._paths() if self.tree.paths else tokens.new_empty(1, 0)
        (size, width), (paths, depth) = tokens.shape, ahead.shape
        places = torch.cat([place, place[:, -1:] + 1 + torch.arange(depth, device=self.device)], dim=1)
        places = places.repeat_interleave(paths, 0)
        hidden = self.decoder(
            input_ids=torch.cat([tokens.repeat_interleave(paths, 0), ahead.repeat(size, 1)], dim=1),
            attention_mask=(places >= 0).long(),
            position_ids=places.clamp_min(0),
            use_cache=False,
        ).last_hidden_state[:, width - 1 :]  # [B·P, 1 + d, D]
        hidden = hidden.unflatten(0, (size, paths))
        return torch.cat([hidden[:, 0, :1], self._at_nodes(hidden[:, :, 1:])], dim=1) if depth else hidden[:, 0]

    def _paths(self) -> torch.Tensor:
        """The paths [P, d], padded on the right, where causal attention keeps the padding from what is read."""
        return pad_right(self.tree.paths, 0, self.device)[0]

    def _at_nodes(self, later: torch.Tensor) -> torch.Tensor:
        """The hidden states after the inner nodes [B, N − 1, D] from those along the paths [B, P, d, D]."""
        path, step = (torch.tensor(list(where), device=self.device) for where in zip(*self.tree.places(), strict=True))
        return later[:, path, step]
