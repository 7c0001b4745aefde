"""The judge `rules` for conversations: it reads the last turn, whose form decides what an answer to it means.

In a transcript, a system prompt or earlier turns stand before the request. Read as one prompt, it is no longer one that
asks "how" or gives a task, and a refusal that only warns or moralises looks like compliance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dcr_ds.judges.base import Answer, Judge, Verdict
from dcr_ds.judges.rules.degenerate import ASKS_FOR_A_LANGUAGE
from dcr_ds.transcript import split_transcript


@dataclass(frozen=True)
class LastTurnJudge:
    """A judge of refusal that reads the last turn of each prompt; in all else it is that judge."""

    judge: Judge

    @property
    def name(self) -> str:
        return self.judge.name

    @property
    def version(self) -> str:
        """That of the judge: prompts of one turn, nearly all, are read as before."""
        return self.judge.version

    @property
    def judges(self) -> Literal["refusal", "harm"]:
        return self.judge.judges

    def label(self, answers: Sequence[Answer]) -> Iterator[tuple[int, Verdict]]:
        return self.judge.label([answer._replace(prompt=last_turn(answer.prompt)) for answer in answers])


def last_turn(prompt: str) -> str:
    """The last message of a transcript, with the languages that earlier ones name; any other prompt as it is.

    Without them, an answer in a language that a system prompt asks for would be degenerate.
    """
    earlier, request = split_transcript(prompt)
    named = dict.fromkeys(match[0] for match in ASKS_FOR_A_LANGUAGE.finditer(earlier))
    return f"{request}\n\n(Said before: {', '.join(named)}.)" if named else request
