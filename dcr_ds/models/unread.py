"""Chat templates that leave out messages without an error, as that of the first Phi-3 leaves out the system prompt.

Rows that differ in such a message alone would have the same tokens, and a model would learn answers to another prompt.
"""

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from dcr_ds.errors import UserError
from dcr_ds.models.rendering import Messages, render

LAST = {"role": "user", "content": "a"}
# conversations that differ in one message, by what that message is
PARTS: dict[str, Callable[[str], Messages]] = {
    "the system prompt": lambda text: [{"role": "system", "content": text}, LAST],
    "earlier turns": lambda text: [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}, LAST],
}


def refuse_unread(tokenizer: PreTrainedTokenizerBase, messages: Messages, known: dict[str, bool]) -> None:
    """Raise UserError if a conversation has a part that the chat template leaves out; one that it refuses is not.

    Args:
        known: whether the template reads each of PARTS, as far as it was asked before; for the next call.
    """
    roles = [message["role"] for message in messages]
    present = {"the system prompt": "system" in roles, "earlier turns": roles.count("user") > 1}
    for part in (name for name in PARTS if present[name]):
        if part not in known:
            known[part] = _is_read(tokenizer, PARTS[part])
        if not known[part]:
            raise UserError(
                f"model.chat_template: it leaves out {part}, without an error; use a template that writes all "
                f"messages, or remove {part} from the data"
            )


def _is_read(tokenizer: PreTrainedTokenizerBase, turns: Callable[[str], Messages]) -> bool:
    try:
        first, second = (render(tokenizer, turns(text), add_generation_prompt=True) for text in "bc")
    except UserError:
        return True
    return first != second
