"""Chat templates that begin answers with a block of reasoning in prompts, and without it in conversations.

The prompts of DeepSeek-R1's distilled models and of QwQ end with `<think>` and a line break, so that the model reasons
first; in rendered conversations the block is left out. A model that was trained on such conversations would learn
answers at a place where it never generates them. So the answer is written where the model generates it: after the
prompt, and after the reasoning in the data, or else after an empty block, as in Qwen3's own training.
"""

from dcr_ds.models.plain_text import EncodingError
from dcr_ds.reasoning import Block, block_at_the_end, closing_tag, leading_block


def continued(prompt: str, conversation: str, content: str) -> tuple[str, str] | None:
    """The text of a conversation that begins with its prompt, and the empty rest of a block that was added, if any.

    Args:
        prompt: rendered, up to the start of the answer.
        conversation: rendered, which does not begin with the prompt.
        content: of the answer.

    Returns:
        None if they differ in more than a block of reasoning at the end of the prompt.

    Raises:
        EncodingError: the answer has reasoning that never ends, or the template closes the block before the answer.
    """
    block = block_at_the_end(prompt)
    if block is None or not conversation.startswith(prompt[: block.start]):
        return None
    rest = conversation[block.start :]
    own = leading_block(rest)
    reasoning, answer = own or ((leading_block(content) or ("",))[0], rest)
    if answer is None:
        raise EncodingError("the answer has a block of reasoning that never ends")
    if block.is_closed:
        if reasoning.strip():
            raise EncodingError(
                "the answer has reasoning, but the chat template closes the block before it; remove the reasoning, or "
                "set model.chat_template_kwargs so that the model reasons (with many models enable_thinking: true)"
            )
        return prompt + answer, ""
    closing = _closing(prompt, block)
    if closing is None:
        return None
    if own:
        answer = answer.lstrip("\n")
    if reasoning.strip():
        return prompt + reasoning.strip("\n") + closing + answer, ""
    return prompt + closing + answer, closing


def refuse_left_out(answer: str, content: str) -> None:
    """Raise EncodingError if a rendered answer lacks the reasoning that its content begins with."""
    reasoning = (leading_block(content) or ("",))[0].strip()
    if reasoning and reasoning not in answer:
        raise EncodingError(
            "the answer has reasoning, and the chat template leaves it out; remove the reasoning, or set "
            "model.chat_template to a template that writes it"
        )


def _closing(prompt: str, block: Block) -> str | None:
    """What closes a block, with line breaks if the prompt has one after the opening tag."""
    tag = closing_tag(block.tag)
    return tag and (f"\n{tag}\n\n" if prompt.endswith("\n") else tag)
