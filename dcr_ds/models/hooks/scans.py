"""SCANS' hook: steers activations towards or away from refusal, by a classification of the prompt.

Cao, Yang and Zhao, SCANS: Mitigating the Exaggerated Safety for LLMs via Safety-Conscious Activation Steering, AAAI
2025 (arXiv 2408.11491). dcr_ds/baselines/scans.py computes what the hook needs.

Legend: a_ℓ output of block ℓ, S steered and C classified blocks, D width, B rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dcr_ds.models.hooks.context import Places, Prompts
from dcr_ds.models.hooks.states import Output, block_outputs, hidden_of, with_hidden
from dcr_ds.progress import heartbeat


@dataclass(frozen=True)
class ScansSettings:
    """
    Attributes:
        strength: α.
        threshold: T; a prompt with a score of at least T is unsafe.
        steered, classified: blocks, counted from 1.
        sure: tokens of the answer "Sure".
        threshold_from: where T comes from, for the reader of the record.
    """

    strength: float
    threshold: float
    steered: Sequence[int]
    classified: Sequence[int]
    sure: Sequence[int]
    threshold_from: str


class Scans:
    """Adds −α v_ℓ (safe prompt) or +α v_ℓ (unsafe) to a_ℓ from the last token of the prompt on.

    A prompt is classified once, by itself, so that its class does not depend on the batch.
    """

    def __init__(self, model, settings: ScansSettings, vectors: Mapping[str, torch.Tensor]):
        """
        Args:
            vectors: `directions` [S, D], the unit vectors v_ℓ, and `reference` [C, D].
        """
        self.settings = settings
        self._decoder = model.get_decoder()
        self._reference = vectors["reference"].to(model.device)
        self._is_unsafe: dict[tuple[int, ...], bool] = {}
        self._signs: torch.Tensor | None = None  # [B]; None while prompts are classified
        self._places = Places(self._decoder)
        for layer, direction in zip(settings.steered, vectors["directions"].to(model.device), strict=True):
            self._steer(self._decoder.layers[layer - 1], settings.strength * direction)

    def begin(self, prompts: Prompts) -> None:
        unsafe = torch.tensor([self.is_unsafe(prompt) for prompt in prompts], device=self._reference.device)
        self._places.begin(prompts)
        self._signs = torch.where(unsafe, 1.0, -1.0)

    def end(self) -> None:
        self._places.end()
        self._signs = None

    def is_unsafe(self, prompt: Sequence[int]) -> bool:
        """The class of a prompt, which is remembered."""
        key = tuple(prompt)
        if key not in self._is_unsafe:
            heartbeat("SCANS: classifying prompts")
            self._places.begin([prompt])
            states = sure_states(self._decoder, self.settings.classified, prompt, self.settings.sure)
            self._is_unsafe[key] = unsafe_score(states, self._reference) >= self.settings.threshold
        return self._is_unsafe[key]

    def _steer(self, block, shift: torch.Tensor) -> None:
        def steer(block, args: tuple, output: Output) -> Output | None:
            if self._signs is None:
                return None
            hidden, places = hidden_of(output), self._places
            signs = places.of_rows(self._signs)[:, None] * (places.offsets >= 0)  # [B, T]
            return with_hidden(output, hidden + (signs[..., None] * shift).to(hidden.dtype))

        block.register_forward_hook(steer)


def sure_states(decoder, layers: Sequence[int], prompt: Sequence[int], sure: Sequence[int]) -> torch.Tensor:
    """t_ℓ [C, D]: a_ℓ at the last token of the prompt minus a_ℓ at the last token of "Sure" after it."""
    last, end = block_outputs(decoder, layers, [*prompt, *sure], (len(prompt) - 1, -1)).unbind(1)
    return last - end


def unsafe_score(states: torch.Tensor, reference: torch.Tensor) -> float:
    """s: the mean over blocks of the cosine of t_ℓ [C, D] to the mean t_ℓ of harmful anchors [C, D]."""
    return F.cosine_similarity(states, reference.to(states.dtype), dim=-1).mean().item()
