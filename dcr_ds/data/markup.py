"""Notice prompts that hold a whole transcript, or the control tokens of a chat template, as text."""

import re
from collections.abc import Sequence

SPEAKER = r"(?:human|user|instruction|question|q)"
ANSWERER = r"(?:assistant|response|answer|ai|bot|gpt|a)"
FIRST_TURN = re.compile(rf"\s*(?:Below is an instruction\b[^#]*)?(?:#+ *)?\**{SPEAKER}\** *:", re.IGNORECASE)
LATER_TURN = re.compile(rf"^[ \t]*(?:#+ *)?\**{ANSWERER}\** *:|\sASSISTANT:", re.IGNORECASE | re.MULTILINE)
MARKUP = re.compile(
    r"\[/?INST\]|<<SYS>>|<\|(?:im_start|im_end|start_header_id|user|assistant|system|start)\|>|<start_of_turn>|"
    r"<\uff5c(?:User|Assistant)\uff5c>"
)
MOST = 0.5  # of the prompts


def markup_notes(prompts: Sequence[str], plural: str) -> list[str]:
    """A note for each kind of markup that most prompts contain."""
    kinds = {
        'look like transcripts ("Human: … Assistant:"), which are': lambda text: (
            FIRST_TURN.match(text) and LATER_TURN.search(text)
        ),
        "contain the markup of a chat template (such as [INST]), which is": lambda text: MARKUP.search(text),
    }
    counts = {kind: sum(bool(found(text)) for text in prompts) for kind, found in kinds.items()}
    return [
        f"{count} of {len(prompts)} {plural} {kind} read as part of the prompt; remove the markup, or write the turns "
        "as messages (prompt sets of HH-RLHF: first_human_turn)"
        for kind, count in counts.items()
        if count > MOST * len(prompts)
    ]
