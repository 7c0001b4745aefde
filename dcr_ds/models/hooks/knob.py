"""The knob's hook: a constant on the logits of some tokens where an answer begins (dcr_ds/baselines/knob.py)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dcr_ds.models.hooks.context import Places, Prompts, hook_of


@dataclass(frozen=True)
class KnobSettings:
    """The constant, the tokens whose logits it is added to, and their texts."""

    strength: float
    tokens: Sequence[int]
    texts: Sequence[str]


class Knob:
    """Adds a constant to the logits of tokens after the last token of each prompt, and nowhere else.

    The logits are those that the model returns: after the cap of models that cap them.
    """

    def __init__(self, model, settings: KnobSettings):
        self.strength, self.tokens = settings.strength, list(settings.tokens)
        self._places = Places(model.get_decoder())
        model.register_forward_hook(self._raise)

    def begin(self, prompts: Prompts) -> None:
        self._places.begin(prompts)

    def end(self) -> None:
        self._places.end()

    def loss_change(self, targets: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        """What the knob adds to −log p [n] of the first tokens of answers.

        Args:
            targets: [n].
            log_p: [n, tokens] of the raised tokens without the knob.
        """
        is_raised = torch.isin(targets, torch.tensor(self.tokens, device=targets.device))
        grown = (log_p.double().logsumexp(-1).exp() * math.expm1(self.strength)).log1p()
        return (grown - self.strength * is_raised).to(log_p.dtype)

    def _raise(self, model, args: tuple, output) -> None:
        logits = output.logits  # of the last tokens alone, if the caller asks for so few
        row, place = (self._places.offsets[:, -logits.shape[1] :] == 0).nonzero(as_tuple=True)
        if not len(row):
            return
        # the sum is not rounded to 16 bits
        output.logits = logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        tokens = torch.tensor(self.tokens, device=logits.device)
        logits[row[:, None], place[:, None], tokens] += self.strength


def knob_of(model) -> Knob | None:
    """The knob of a model, for readers that compute logits from hidden states themselves."""
    hook = hook_of(model)
    return hook if isinstance(hook, Knob) else None
