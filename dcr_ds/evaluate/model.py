"""A model under evaluation: where it is, how it is loaded, and what identifies it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.models.checkpoint_files import tokenizer_folder
from dcr_ds.models.hooks.load import load_model
from dcr_ds.models.hooks.record import content_hash, hook_hash
from dcr_ds.models.limits import model_limits
from dcr_ds.models.tensor_parallel import load_spread
from dcr_ds.models.tokenizer import load_tokenizer
from dcr_ds.recipe import OWN_TEMPLATE, ChatTemplate
from dcr_ds.recipe.layout import ModelFolder


@dataclass(frozen=True)
class EvaluatedModel:
    """A model under evaluation: its name in messages, the folder of its results, and how it is loaded."""

    name: str
    folder: ModelFolder
    source: Path
    dtype: torch.dtype
    attention: str
    template: ChatTemplate = OWN_TEMPLATE
    adapter: Path | None = None  # in peft's format; merged into the source
    hook: Path | None = None  # a baseline folder

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(tokenizer_folder(self.source, self.hook or self.adapter), self.template, self.source)

    @property
    def context(self) -> int | None:
        """Longest input plus output in tokens; None for architectures without a fixed context."""
        return model_limits(self.source).context

    def load(self, device: torch.device, ranks_per_copy: int = 1) -> PreTrainedModel:
        """Load a whole copy, or the part of this rank. All ranks."""
        if self.adapter is None and self.hook is None and ranks_per_copy > 1:
            return load_spread(self.source, self.dtype, self.attention, ranks_per_copy, device)
        return load_model(self.source, self.adapter, self.hook, self.dtype, self.attention, device)

    def identity(self, ranks_per_copy: int = 1) -> dict[str, str]:
        """What its answers depend on, by content: the same model in another folder is the same model."""
        content = content_hash(self.source, self.adapter) + (f"+{hook_hash(self.hook)}" if self.hook else "")
        identity = {"content": content, "dtype": str(self.dtype).removeprefix("torch."), "attention": self.attention}
        # sums over ranks change the last bits of logits
        return identity | ({"ranks_per_copy": str(ranks_per_copy)} if ranks_per_copy > 1 else {})
