"""SCANS: refusal directions and a reference for the classification of prompts, from two sets of anchors.

Cao, Yang and Zhao, AAAI 2025 (arXiv 2408.11491); dcr_ds/models/hooks/scans.py applies them. With a_ℓ(x) the output of
block ℓ at the last token of prompt x, and "Sure" appended as the beginning of the answer:

    v_ℓ = mean over harmful anchors of a_ℓ − mean over harmless anchors of a_ℓ, divided by its norm
    t_ℓ(x) = a_ℓ(x) − a_ℓ at the last token of "Sure";  reference: the mean of t_ℓ over the harmful anchors
    s(x) = mean over the classified blocks of cos(t_ℓ(x), reference);  unsafe if s(x) ≥ T

The published code steers blocks 11 to 20 of 32 and classifies by blocks 11 to 32, in the 7B models; here these scale
with the number of blocks. It takes the last block after the final norm, this implementation before it. T is tuned on
held-out anchors here; the published values were set per test set.

Legend: S steered and C classified blocks, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from dcr_ds.errors import UserError
from dcr_ds.models.chat import encode_answered, until_turn_end
from dcr_ds.models.hooks.scans import unsafe_score
from dcr_ds.models.hooks.states import block_outputs
from dcr_ds.progress import heartbeat

FIRST, LAST = 10 / 32, 20 / 32  # of the blocks: where steering begins and ends
ROUNDING = 1e-6  # of activations in float32, relative to their length
Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Blocks:
    """The steered and the classified blocks, counted from 1."""

    steered: list[int]
    classified: list[int]

    @classmethod
    def of(cls, count: int) -> "Blocks":
        """The blocks of a model that has `count`.

        Raises:
            UserError: there are too few.
        """
        first, last = round(FIRST * count), round(LAST * count)
        if not 0 < first < last:
            raise UserError(f"scans: the model has {count} blocks; SCANS steers the middle ones and needs 3 or more")
        return cls(list(range(first + 1, last + 1)), list(range(first + 1, count + 1)))


@dataclass(frozen=True)
class Anchors:
    """Token ids of the prompts that directions and reference come from."""

    harmful: Ids
    harmless: Ids


@dataclass(frozen=True)
class ScansVectors:
    """
    Attributes:
        directions: v_ℓ [S, D], of norm 1.
        reference: mean t_ℓ [C, D] of the harmful anchors.
        distance: mean over steered blocks of the distance between the means of a_ℓ of both sets, the scale of α.
        norm: mean norm of a_ℓ over steered blocks and anchors.
    """

    directions: torch.Tensor
    reference: torch.Tensor
    distance: float
    norm: float

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What the hook reads."""
        return {"directions": self.directions, "reference": self.reference}


def sure_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of the answer "Sure" behind a prompt, as the chat template has them."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Sure"}]
    answered = encode_answered(tokenizer, turns)
    return until_turn_end(tokenizer, answered.ids[answered.prompt_tokens + answered.added_tokens :])


def compute_vectors(model, blocks: Blocks, anchors: Anchors, sure: Sequence[int]) -> ScansVectors:
    """Directions and reference of a model, one forward pass per anchor.

    Raises:
        UserError: activations of both sets are equal, or not finite.
    """
    decoder = model.get_decoder()
    harmful = torch.stack([_states(decoder, blocks, ids, sure) for ids in anchors.harmful]).double()
    harmless = torch.stack([_states(decoder, blocks, ids, sure) for ids in anchors.harmless]).double()
    steered = len(blocks.steered)  # they are the first of the classified ones
    last = torch.cat([harmful, harmless])[:, :steered, 0]
    difference = harmful[:, :steered, 0].mean(0) - harmless[:, :steered, 0].mean(0)  # [S, D]
    norms = difference.norm(dim=-1, keepdim=True)
    reference = (harmful[:, :, 0] - harmful[:, :, 1]).mean(0)
    if not min(_smallest_share(difference, last), _smallest_share(reference, harmful)) > ROUNDING:
        raise UserError(
            'scans: the activations of harmful and harmless anchors, or before and after the answer "Sure", are equal '
            "or not finite; check that the two sets differ and that the model is not damaged"
        )
    dtype = torch.promote_types(model.dtype, torch.float32)
    directions = (difference / norms).to(dtype)
    return ScansVectors(directions, reference.to(dtype), norms.mean().item(), last.norm(dim=-1).mean().item())


def scores_of(model, blocks: Blocks, vectors: ScansVectors, prompts: Ids, sure: Sequence[int]) -> list[float]:
    """s of each prompt."""
    decoder, scores = model.get_decoder(), []
    for ids in prompts:
        last, end = _states(decoder, blocks, ids, sure).unbind(1)
        scores.append(unsafe_score(last - end, vectors.reference))
    return scores


def best_threshold(harmful: Sequence[float], harmless: Sequence[float]) -> tuple[float, float]:
    """The threshold on s with the best balanced accuracy, and that accuracy.

    Candidates lie halfway between neighbouring scores; of equally good ones the one with the widest gap is taken.
    """
    scores = sorted({*harmful, *harmless})
    candidates = [((low + high) / 2, high - low) for low, high in zip(scores, scores[1:], strict=False)]
    candidates.append((scores[0], 0.0))  # everything is unsafe

    def accuracy(threshold: float) -> float:
        found = sum(score >= threshold for score in harmful) / len(harmful)
        passed = sum(score < threshold for score in harmless) / len(harmless)
        return (found + passed) / 2

    threshold, _ = max(candidates, key=lambda candidate: (accuracy(candidate[0]), candidate[1]))
    return threshold, accuracy(threshold)


def _smallest_share(parts: torch.Tensor, states: torch.Tensor) -> float:
    """The smallest norm of parts [..., D] in relation to the mean norm of states [..., D]; NaN if any is not finite."""
    return float((parts.norm(dim=-1) / states.norm(dim=-1).mean()).min())


def _states(decoder, blocks: Blocks, ids: Sequence[int], sure: Sequence[int]) -> torch.Tensor:
    """a_ℓ [C, 2, D] at the last token of a prompt and of "Sure" behind it; the first does not see the second."""
    heartbeat("SCANS: activations of anchors")
    return block_outputs(decoder, blocks.classified, [*ids, *sure], (len(ids) - 1, -1))
