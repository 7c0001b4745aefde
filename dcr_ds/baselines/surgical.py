"""Single-vector ablation of the false-refusal direction (Wang et al., "Surgical, Cheap, and Flexible", ICLR 2025).

Candidates, at each block input and each token that the chat template writes after the user's message:

    h = mean(harmful) − mean(harmless),  o = mean(pseudo-harmful) − mean(harmless)
    o′ = o − λ (o·ĥ) ĥ,  ô = o′ / ‖o′‖

over prompts that the model treats as expected: harmful and pseudo-harmful ones that it refuses, harmless ones that it
answers. The chosen candidate is the one with the lowest mean refusal score of pseudo-harmful validation prompts when
it is ablated, among those of the first 80 % of the blocks whose ablation changes the next token of harmless
validation prompts by at most 0.2 nats (mean Kullback–Leibler divergence from the unchanged model).

Two things are read otherwise than in the paper. The refusal score is the log-odds of whole refusal openings, not of
their first tokens. A prompt is refused if greedy decoding opens with a refusal, not if its score is above 0.

Legend: P positions, L blocks, D width, n prompts, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product

import torch
from transformers import PreTrainedModel

from dcr_ds.baselines.ablation import ablated, ablation_edits
from dcr_ds.baselines.activations import batches_of, mean_block_inputs
from dcr_ds.baselines.edits import Edited
from dcr_ds.baselines.projections import check_residual
from dcr_ds.baselines.prompts import ROLES, option_of
from dcr_ds.baselines.subject import Encoded, Split, Subject
from dcr_ds.errors import UserError
from dcr_ds.models.batches import pad_left

LAST_SHARE = 0.2  # of the blocks, which give no candidates
ROUNDING = 1e-12  # of means in float64, relative to their length
FEWEST = {"training": 8, "validation": 4}  # prompts of a set that are treated as expected


@dataclass(frozen=True)
class SurgicalSettings:
    """
    Attributes:
        strength: λ, how much of the refusal direction is taken out of the false-refusal direction.
        max_kl: largest divergence on harmless prompts, in nats.
    """

    strength: float = 1.0
    max_kl: float = 0.2


@dataclass(frozen=True)
class Candidate:
    """A direction, where it is from, and what its ablation does.

    Attributes:
        position: token, counted from the end of the prompt: −1 is the last one.
        layer: block whose input it is from, from 0.
        kl: on harmless validation prompts, in nats.
        refusal: mean refusal score of pseudo-harmful validation prompts; NaN where it is not measured, as the
            divergence is too large.
    """

    position: int
    layer: int
    kl: float
    refusal: float


def surgical(subject: Subject, settings: SurgicalSettings, report: Callable[[str], None] = lambda line: None) -> Edited:
    """Find the false-refusal direction of a model, and the change of weights that removes it.

    Args:
        report: gets a line per step.

    Raises:
        UserError: too few prompts are treated as expected, no candidate changes harmless prompts little enough, or the
            model has other modules.
    """
    check_residual(subject.model)
    prompts = {name: _expected(subject, name) for name in ROLES}
    for name, split in prompts.items():
        report(f"{name}: {len(split.train)} training and {len(split.validation)} validation prompts are as expected")
    means = {
        name: mean_block_inputs(subject.model, split.train.tokens, subject.positions, subject.batch_size)
        for name, split in prompts.items()
    }
    directions = false_refusal_directions(
        means["harmful"], means["harmless"], means["seemingly_toxic"], settings.strength
    )
    before = _mean(subject.scores(prompts["seemingly_toxic"].validation))
    candidates = []
    for candidate in _measured(subject, directions, prompts, settings):
        candidates.append(candidate)
        report(f"candidate {len(candidates)} of at most {len(_places(directions))}: {_described(candidate)}")
    chosen = choose(candidates, settings.max_kl)
    report(f"chosen: {_described(chosen)}; refusal score before: {before:.2f} nats")
    direction = directions[chosen.position, chosen.layer]
    figures = {
        "prompts": {name: [len(split.train), len(split.validation)] for name, split in prompts.items()},
        "chosen": asdict(chosen),
        "refusal_before": before,
        "candidates": [asdict(candidate) for candidate in candidates],
        "direction": direction.tolist(),
    }
    return Edited(ablation_edits(subject.model, direction), figures, unties_head=True)


def false_refusal_directions(
    harmful: torch.Tensor, harmless: torch.Tensor, pseudo_harmful: torch.Tensor, strength: float
) -> torch.Tensor:
    """Candidates of length 1 [P, L, D] from mean block inputs of the same shape, in float64.

    NaN where the means differ by rounding alone, as at the input of the first block behind the user's message.
    """
    smallest = ROUNDING * harmless.norm(dim=-1, keepdim=True)

    def unit(difference: torch.Tensor) -> torch.Tensor:
        length = difference.norm(dim=-1, keepdim=True)
        return difference / length.where(length > smallest, math.nan)

    refusal, false_refusal = unit(harmful - harmless), pseudo_harmful - harmless
    return unit(false_refusal - strength * (false_refusal * refusal).sum(-1, keepdim=True) * refusal)


def choose(candidates: list[Candidate], max_kl: float) -> Candidate:
    """The candidate with the lowest refusal score among those that change harmless prompts little enough.

    Raises:
        UserError: there is none.
    """
    allowed = [candidate for candidate in candidates if candidate.kl <= max_kl]
    if allowed:
        return min(allowed, key=lambda candidate: candidate.refusal)
    if not candidates:
        raise UserError("surgical: no candidate: the means of the three sets are equal everywhere; check the prompts")
    best = min(candidates, key=lambda candidate: candidate.kl)
    raise UserError(
        f"surgical: the ablation of each of {len(candidates)} candidates changes harmless prompts by more than "
        f"--max-kl {max_kl:g} nats; the smallest divergence is {best.kl:.3g} (position {best.position}, layer "
        f"{best.layer}): raise --max-kl, or lower --strength"
    )


def _expected(subject: Subject, name: str) -> Split:
    """The prompts of a set that the model treats as expected."""
    kept, given = subject.as_expected(name), subject.prompts[name]
    parts = {"training": (kept.train, given.train), "validation": (kept.validation, given.validation)}
    for part, (left, of) in parts.items():
        if len(left) < FEWEST[part]:
            raise UserError(
                f"surgical: the model {'answers' if name == 'harmless' else 'refuses'} {len(left)} of {len(of)} {part} "
                f"prompts of the set {name}, by the first words of its greedy answers; {FEWEST[part]} are needed: name "
                f"a larger set with {option_of(name)}, or another model"
            )
    return kept


def _places(directions: torch.Tensor) -> list[tuple[int, int]]:
    """Position and layer of the directions that are numbers and not of the last blocks."""
    positions, blocks = directions.shape[:2]
    places = product(range(-positions, 0), range(int(blocks * (1 - LAST_SHARE))))
    return [place for place in places if directions[place].isfinite().all()]


def _measured(
    subject: Subject, directions: torch.Tensor, prompts: dict[str, Split], settings: SurgicalSettings
) -> Iterator[Candidate]:
    """All candidates whose ablation gives numbers."""
    harmless, pseudo = prompts["harmless"].validation, prompts["seemingly_toxic"].validation
    expected = next_token_log_p(subject.model, harmless, subject.batch_size)
    for position, layer in _places(directions):
        with ablated(subject.model, directions[position, layer]):
            kl = _divergence(expected, next_token_log_p(subject.model, harmless, subject.batch_size))
            if math.isnan(kl):
                continue
            refusal = _mean(subject.scores(pseudo)) if kl <= settings.max_kl else math.nan
        yield Candidate(position, layer, kl, refusal)


def _described(candidate: Candidate) -> str:
    refusal = "" if math.isnan(candidate.refusal) else f", refusal score {candidate.refusal:.2f} nats"
    return f"position {candidate.position}, layer {candidate.layer}: divergence {candidate.kl:.3f} nats{refusal}"


@torch.no_grad()
def next_token_log_p(model: PreTrainedModel, prompts: Encoded, batch_size: int) -> torch.Tensor:
    """Log-probabilities of the token after each prompt [n, V] in float64, the shortest prompt first."""
    rows = []
    for batch in batches_of(prompts.tokens, batch_size):
        tokens, mask = pad_left(batch, 0, model.device)
        logits = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        rows.append(logits.double().log_softmax(-1).cpu())
    return torch.cat(rows)


def _divergence(expected: torch.Tensor, log_p: torch.Tensor) -> float:
    """Mean of KL(expected ‖ log_p), in nats."""
    return float((expected.exp() * (expected - log_p)).sum(-1).mean())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
