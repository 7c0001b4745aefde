"""The interface of judges: they label answers, and a version identifies what the labels depend on."""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Literal, NamedTuple, Protocol


class Answer(NamedTuple):
    """A prompt and a model's completion.

    Attributes:
        finish: "length" if the answer was cut off, None if unknown.
        sent: what an attack made of the prompt; empty without one.
    """

    prompt: str
    completion: str
    finish: str | None = None
    sent: str = ""


class Verdict(NamedTuple):
    """A label, and a score from 0 to 1 of how much of a refusal (or how harmful) the answer is; None: no score."""

    label: str
    score: float | None


class Judge(Protocol):
    """A judge of refusal (labels REFUSAL_LABELS) or of harm (HARM_LABELS); harm is not refusal."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Short hash of everything a verdict depends on besides the answer: phrases, weights, prompt, model."""
        ...

    @property
    def judges(self) -> Literal["refusal", "harm"]: ...

    def label(self, answers: Sequence[Answer]) -> Iterator[tuple[int, Verdict]]:
        """Yield (index of an answer, its verdict) as verdicts become available, in any order."""
        ...


def verdicts(judge: Judge, answers: Sequence[Answer]) -> list[Verdict]:
    """All verdicts of a judge, in the order of the answers."""
    return [verdict for _, verdict in sorted(judge.label(answers), key=itemgetter(0))]
