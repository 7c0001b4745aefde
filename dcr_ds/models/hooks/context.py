"""What a hook knows of a batch: where each prompt ends, and where the tokens of a forward pass stand.

Legend: B rows, T tokens of a forward pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

ATTRIBUTE = "answering_hook"  # of a model with a hook
Prompts = Sequence[Sequence[int]]


class Hook(Protocol):
    """Changes a model between `begin` and `end`."""

    def begin(self, prompts: Prompts) -> None: ...

    def end(self) -> None: ...


def hook_of(model) -> Hook | None:
    return getattr(model, ATTRIBUTE, None)


@contextmanager
def answering(model, prompts: Prompts) -> Iterator[None]:
    """A context in which the forward passes of a model read these prompts and what follows them.

    A model without a hook is left as it is. A model with one can only be used inside of this context.

    Args:
        prompts: token ids up to where the answer begins, one per row of the batch. Forward passes may have each row
            several times in succession, padding on either side, and only the tokens that are not in the cache.
    """
    hook = hook_of(model)
    if hook is None:
        yield
        return
    hook.begin(prompts)
    try:
        yield
    finally:
        hook.end()


class Places:
    """Where the tokens of the running forward pass stand in their rows.

    Attributes:
        offsets: [B, T]: 0 for the last token of a prompt, above 0 after it, below 0 before it. That of padding is not
            above the one of its row's first token.
    """

    def __init__(self, decoder):
        self._ends: list[int] = []
        self.offsets = torch.empty(0)
        decoder.register_forward_pre_hook(self._measure, with_kwargs=True)

    def begin(self, prompts: Prompts) -> None:
        self._ends = [len(prompt) - 1 for prompt in prompts]

    def end(self) -> None:
        self._ends = []

    def of_rows(self, values: torch.Tensor) -> torch.Tensor:
        """A value per prompt [B, …] for the rows of the forward pass, which may have each prompt several times."""
        return values.repeat_interleave(self._times(len(self.offsets)), 0)

    def _times(self, rows: int) -> int:
        times, rest = divmod(rows, max(len(self._ends), 1))
        if rest or not self._ends:
            raise RuntimeError(f"{rows} rows for {len(self._ends)} prompts: a hooked model is used inside `answering`")
        return times

    def _measure(self, decoder, args: tuple, kwargs: dict[str, Any]) -> None:
        tokens = kwargs["input_ids"]
        ends = torch.tensor(self._ends, device=tokens.device).repeat_interleave(self._times(len(tokens)))
        self.offsets = _positions(tokens, kwargs) - ends[:, None]


def _positions(tokens: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Positions [B or 1, T] of the tokens in their rows, as the decoder takes them."""
    if (given := inputs.get("position_ids")) is not None:
        return given
    cache = inputs.get("cache", inputs.get("past_key_values"))  # renamed in transformers 5
    start = cache.get_seq_length() if cache is not None else 0
    return torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
