"""Chat templates that leave out parts of a conversation without an error.

The first Phi-3 leaves out the system prompt; templates of models of text and images that read contents as lists of
parts leave out every text; older templates ignore add_generation_prompt, so that a prompt ends before the header of the
answer. Rows that differ in such a part alone would have the same tokens, and a model would learn answers to another
prompt, or be measured at another place than where it answers.
"""

import os.path
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from dcr_ds.errors import UserError
from dcr_ds.models.rendering import Messages, render

LAST = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "a"}
# conversations that differ in one message, by what that message is
PARTS: dict[str, Callable[[str], Messages]] = {
    "the text of messages": lambda text: [{"role": "user", "content": text}],
    "the text of answers": lambda text: [LAST, {"role": "assistant", "content": text}],
    "the system prompt": lambda text: [{"role": "system", "content": text}, LAST],
    "earlier turns": lambda text: [{"role": "user", "content": text}, ANSWER, LAST],
    "the last of several messages": lambda text: [LAST, ANSWER, {"role": "user", "content": text}],
}
OPTIONAL = ("the system prompt", "earlier turns")  # a data set can do without them
START = "the start of the answer"


def refuse_unread(tokenizer: PreTrainedTokenizerBase, messages: Messages, known: dict[str, bool]) -> None:
    """Raise UserError if a conversation has a part that the chat template leaves out; one that it refuses is not.

    Args:
        known: whether the template reads each of PARTS, as far as it was asked before; for the next call.
    """
    roles = [message["role"] for message in messages]
    present = {"the system prompt": "system" in roles, "earlier turns": roles.count("user") > 1}
    present["the last of several messages"] = present["earlier turns"]
    present["the text of answers"] = "assistant" in roles
    for part in (name for name in PARTS if present.get(name, True)):
        if part not in known:
            known[part] = _is_read(tokenizer, PARTS[part])
        if not known[part]:
            remedy = f", or remove {part} from the data" if part in OPTIONAL else ""
            raise UserError(
                f"model.chat_template: it leaves out {part}, without an error; use a template that writes all "
                f"messages, given as text{remedy}"
            )
    if START not in known:
        known[START] = not _text_before_answers(tokenizer)
    if not known[START]:
        raise UserError(
            f"model.chat_template: it ignores add_generation_prompt, so prompts lack {START}, "
            f"{_text_before_answers(tokenizer)!r}; use a template that writes it with add_generation_prompt"
        )


def _is_read(tokenizer: PreTrainedTokenizerBase, turns: Callable[[str], Messages]) -> bool:
    try:
        first, second = (_rendered(tokenizer, turns(text)) for text in "bc")
    except UserError:
        return True
    return first != second


def _text_before_answers(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes before an answer and not at the end of a prompt; "" if nothing."""
    try:
        closed, opened = (render(tokenizer, [LAST], add_generation_prompt=is_open) for is_open in (False, True))
        answered = [_rendered(tokenizer, [LAST, ANSWER | {"content": text}]) for text in "bc"]
    except UserError:
        return ""
    same = os.path.commonprefix(answered)
    is_lacking = closed == opened and same.startswith(opened) and same not in answered
    return same.removeprefix(opened).strip() if is_lacking else ""


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    return render(tokenizer, messages, add_generation_prompt=messages[-1]["role"] == "user")
