"""Notice prompts that hold a whole transcript, the control tokens of a chat template, or quotation marks, as text."""

import re
from collections.abc import Callable, Sequence

SPEAKER = r"(?:human|user|instruction|question|q)"
ANSWERER = r"(?:assistant|response|answer|ai|bot|gpt|a)"
FIRST_TURN = re.compile(rf"\s*(?:Below is an instruction\b[^#]*)?(?:#+ *)?\**{SPEAKER}\** *:", re.IGNORECASE)
LATER_TURN = re.compile(rf"^[ \t]*(?:#+ *)?\**{ANSWERER}\** *:|\sASSISTANT:", re.IGNORECASE | re.MULTILINE)
MARKUP = re.compile(
    r"\[/?INST\]|<<SYS>>|<\|(?:im_start|im_end|start_header_id|user|assistant|system|start)\|>|<start_of_turn>|"
    r"<\uff5c(?:User|Assistant)\uff5c>"
)
CLOSING_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
MOST = 0.5  # of the prompts
SHORTEST = 8  # characters of a prompt that no answer begins with by chance
AS_MESSAGES = "remove the markup, or write the turns as messages (prompt sets of HH-RLHF: first_human_turn)"


def markup_notes(prompts: Sequence[str], plural: str) -> list[str]:
    """A note for each kind of markup that most prompts contain."""
    kinds: dict[str, tuple[Callable[[str], object], str]] = {
        'look like transcripts ("Human: … Assistant:"), which are': (
            lambda text: FIRST_TURN.match(text) and LATER_TURN.search(text),
            AS_MESSAGES,
        ),
        "contain the markup of a chat template (such as [INST]), which is": (MARKUP.search, AS_MESSAGES),
        "stand in quotation marks, which are": (_is_quoted, "remove them (in CSV, and a space before them)"),
    }
    counts = {kind: sum(bool(found(text)) for text in prompts) for kind, (found, _) in kinds.items()}
    return [
        f"{count} of {len(prompts)} {plural} {kind} read as part of the prompt; {kinds[kind][1]}"
        for kind, count in counts.items()
        if count > MOST * len(prompts)
    ]


def answer_notes(rows: Sequence[tuple[str, Sequence[str]]], plural: str) -> list[str]:
    """A note if the answers of most rows hold the prompt as well, as data of reward models do.

    Args:
        rows: the prompt and the answers of each.
    """
    count = sum(bool(answers) and all(_holds(answer, prompt) for answer in answers) for prompt, answers in rows)
    if count <= MOST * len(rows):
        return []
    return [
        f"{count} of {len(rows)} {plural} have answers that begin with the prompt, or are transcripts, which is "
        "trained on as part of the answer; remove all before the answer itself"
    ]


def _holds(answer: str, prompt: str) -> bool:
    is_transcript = FIRST_TURN.match(answer) and LATER_TURN.search(answer)
    return bool(is_transcript) or (len(prompt) >= SHORTEST and answer.lstrip().startswith(prompt.strip()))


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and CLOSING_QUOTES.get(text[0]) == text[-1]
