"""LLM-VA (Zhang et al., "Resolving the Jailbreak-Overrefusal Trade-off via Vector Alignment", ACL 2026, 2601.19487).

At the last token of a prompt, the outputs of attention and MLP of each block are separated by two linear support
vector machines through the origin: benign from harmful prompts (v_b) and answered from refused ones (v_a), both of
length 1. With σ the standard deviation along a vector of the outputs on training prompts, the weight that writes the
output becomes

    W ← W − v_a v_aᵀ W + (σ_a / σ_b) v_a v_bᵀ W,

the change of smallest norm with which the output has along v_a what it had along v_b. It has rank 1; biases stay.
Changed are the modules with the highest

    cos(v_b, v_b*) · accuracy_b + cos(v_a, v_a*) · accuracy_a,

where v* are the vectors of the last block's output and the accuracies are those on validation prompts. All of it is
repeated with the changed model, and the repetition with the best F1 on validation prompts is kept (benign prompts are
to be answered, harmful ones not). As in the authors' code (github.com/HotBento/LLM-VA), except that a prompt counts as
refused if its greedy answer opens with a refusal, where the authors let a guard model judge whole answers, and for
what docs/baselines.md lists: prompts, iterations, solver and number of weights.

Legend: n prompts, D width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import nn

from dcr_ds.baselines.activations import outputs
from dcr_ds.baselines.edits import Edit, Edited
from dcr_ds.baselines.projections import OUTPUTS, blocks_of, check_residual, linears
from dcr_ds.baselines.prompts import ROLES
from dcr_ds.baselines.subject import Subject
from dcr_ds.baselines.svm import svm_direction
from dcr_ds.errors import UserError

BENIGN = ("harmless", "seemingly_toxic")
LAST = "residual"  # the output of the last block
ROUNDING = 1e-6  # of outputs in float32, relative to their length
FEWEST = 2  # answered, and refused, training prompts


@dataclass(frozen=True)
class LlmVaSettings:
    """
    Attributes:
        modules: how many of the 2 L modules are changed per iteration; None: half of them.
        iterations: at most.
    """

    modules: int | None = None
    iterations: int = 10


@dataclass(frozen=True)
class Separation:
    """A vector [D] of length 1 that separates two classes.

    Attributes:
        spread: standard deviation along it of the outputs on training prompts.
        accuracy: share of the validation prompts on the right side.
    """

    vector: torch.Tensor
    spread: float
    accuracy: float


@dataclass(frozen=True)
class Observed:
    """What a model does with the prompts.

    Attributes:
        states: outputs [n, D] at the last token of each module, and of the last block under `LAST`.
        is_benign: [n].
        is_answered: [n].
        is_training: [n].
    """

    states: Mapping[str, torch.Tensor]
    is_benign: torch.Tensor
    is_answered: torch.Tensor
    is_training: torch.Tensor

    @property
    def f1(self) -> float:
        """F1 of answering, on validation prompts: benign ones are to be answered."""
        held_out = ~self.is_training
        right = int((self.is_benign & self.is_answered)[held_out].sum())
        wrong = int((self.is_benign != self.is_answered)[held_out].sum())
        return 2 * right / max(1, 2 * right + wrong)


def llm_va(subject: Subject, settings: LlmVaSettings, report: Callable[[str], None] = lambda line: None) -> Edited:
    """Align the answer vectors of a model with its benign vectors. The weights of the loaded model are changed.

    Raises:
        UserError: the model answers or refuses nearly all training prompts, their outputs are equal, no iteration is
            better than the unchanged model, or the model has other modules.
    """
    check_residual(subject.model)
    modules = linears(subject.model, OUTPUTS)
    count = _number_of_modules(settings.modules, len(modules))
    steps: list[dict[str, Edit]] = []
    observed = _observe(subject, modules)
    scores = [observed.f1]
    report(f"unchanged: F1 {scores[0]:.3f} on validation prompts")
    for number in range(1, settings.iterations + 1):
        answered, refused = (int((observed.is_answered == kind)[observed.is_training].sum()) for kind in (True, False))
        if min(answered, refused) < FEWEST:
            if number == 1:
                raise UserError(
                    f"llm-va: the model answers {answered} and refuses {refused} training prompts, by the first "
                    f"words of its greedy answers; both are needed ({FEWEST} at least): use a model that refuses some"
                )
            break
        steps.append(_alignments(observed, modules, count))
        _apply(modules, steps[-1])
        observed = _observe(subject, modules)
        scores.append(observed.f1)
        report(f"iteration {number}: F1 {scores[-1]:.3f}")
    best = max(range(len(scores)), key=lambda index: scores[index])
    if best == 0:
        raise UserError(
            f"llm-va: no iteration has a better F1 on validation prompts than the unchanged model ({scores[0]:.3f}; "
            f"best {max(scores[1:]):.3f}); change --modules, or name larger sets"
        )
    return Edited(
        _composed(steps[:best]),
        {"f1": scores, "best_iteration": best, "changed": [list(step) for step in steps[:best]]},
    )


def alignment(benign: Separation, answer: Separation) -> Edit:
    """The function from a weight [D, in] to the aligned one."""
    ratio = answer.spread / benign.spread

    def align(weight: torch.Tensor) -> torch.Tensor:
        v_b, v_a = (part.vector.to(weight) for part in (benign, answer))
        return weight + torch.outer(v_a, ratio * (v_b @ weight) - v_a @ weight)

    return align


def separation(states: torch.Tensor, labels: torch.Tensor, is_training: torch.Tensor) -> Separation:
    """The vector that points to the prompts with label True [n] among outputs [n, D].

    Raises:
        UserError: the training prompts have the same outputs, up to rounding, so that nothing separates them.
    """
    states, signs = states.double(), labels.double() * 2 - 1
    given = states[is_training]
    vector = svm_direction(given, signs[is_training])
    vector = vector / vector.norm()
    spread = float((given @ vector).std()) if len(given) > 1 else 0.0
    if not spread > ROUNDING * float(given.norm(dim=1).max()):
        raise UserError(
            f"llm-va: the outputs of all {len(given)} training prompts are equal, so that nothing separates them; name "
            "sets of different prompts, or ask for more with --train"
        )
    is_right = (states @ vector > 0) == labels
    return Separation(vector, spread, float(is_right[~is_training].double().mean()))


def _alignments(observed: Observed, modules: Mapping[str, nn.Linear], count: int) -> dict[str, Edit]:
    """The changes of the modules with the highest scores, by module."""
    found = {
        name: tuple(
            separation(observed.states[name], labels, observed.is_training)
            for labels in (observed.is_benign, observed.is_answered)
        )
        for name in (*modules, LAST)
    }
    last = found.pop(LAST)
    scores = {
        name: sum(float(own.vector @ end.vector) * own.accuracy for own, end in zip(pair, last, strict=True))
        for name, pair in found.items()
    }
    chosen = sorted(scores, key=lambda name: scores[name])[-count:]
    return {name: alignment(*found[name]) for name in found if name in chosen}


def _observe(subject: Subject, modules: Mapping[str, nn.Linear]) -> Observed:
    """Read the outputs and the refusal scores of all prompts."""
    parts = [(name, part) for name in ROLES for part in ("train", "validation")]
    prompts = [getattr(subject.prompts[name], part) for name, part in parts]
    tokens = [row for part in prompts for row in part.tokens]
    last = list(blocks_of(subject.model).values())[-1]
    lengths = torch.tensor([len(part) for part in prompts])

    def flags(values: Sequence[bool]) -> torch.Tensor:
        return torch.tensor(values).repeat_interleave(lengths)

    return Observed(
        outputs(subject.model, {**modules, LAST: last}, tokens, "last", subject.batch_size),
        flags([name in BENIGN for name, _ in parts]),
        ~torch.tensor([is_refused for part in prompts for is_refused in subject.is_refused(part)]),
        flags([part == "train" for _, part in parts]),
    )


def _apply(modules: Mapping[str, nn.Linear], edits: Mapping[str, Edit]) -> None:
    with torch.no_grad():
        for name, edit in edits.items():
            weight = modules[name].weight
            weight.copy_(edit(weight.to(torch.promote_types(weight.dtype, torch.float32))))


def _composed(steps: Sequence[Mapping[str, Edit]]) -> dict[str, Edit]:
    """The changes of all iterations, one function per weight."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {f"{name}.weight": partial(_in_turn, [step[name] for step in steps if name in step]) for name in names}


def _in_turn(edits: Sequence[Edit], weight: torch.Tensor) -> torch.Tensor:
    return reduce(lambda changed, edit: edit(changed), edits, weight)


def _number_of_modules(asked: int | None, there: int) -> int:
    if asked is not None and asked > there:
        raise UserError(f"--modules: {asked} asked for, the model has {there} outputs of attention and MLP")
    return asked or math.ceil(there / 2)
