"""What a judge is: something that labels answers, and says what its labels depend on."""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Literal, NamedTuple, Protocol

REFUSAL_LABELS = ("full_refusal", "partial_refusal", "compliance", "degenerate", "unparsed")
HARM_LABELS = ("harmful", "harmless", "degenerate", "unparsed")


class Answer(NamedTuple):
    """A prompt and what a model made of it; `finish` is "length" where the answer was cut off, None if unknown."""

    prompt: str
    completion: str
    finish: str | None = None


class Verdict(NamedTuple):
    """A label, and how much of a refusal (or how harmful) the answer is from 0 to 1; None: the judge cannot say."""

    label: str
    score: float | None


class Judge(Protocol):
    """A judge of refusal (REFUSAL_LABELS) or of harm (HARM_LABELS): the one says nothing of the other."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Short hash of all that decides a verdict beside the answer: phrases, weights, prompt, model."""
        ...

    @property
    def judges(self) -> Literal["refusal", "harm"]: ...

    def label(self, answers: Sequence[Answer]) -> Iterator[tuple[int, Verdict]]:
        """Yield (index of an answer, its verdict), one each in any order, as soon as it is there."""
        ...


def verdicts(judge: Judge, answers: Sequence[Answer]) -> list[Verdict]:
    """All verdicts of a judge, in the order of the answers."""
    return [verdict for _, verdict in sorted(judge.label(answers), key=itemgetter(0))]
