"""Templates whose prompts open a block of reasoning that conversations do not have, in the formats of known models."""

import pytest
from tiny import make_tokenizer

from dcr_ds.diagnose.openings import find_openings
from dcr_ds.errors import UserError
from dcr_ds.evaluate.general_loss import prepare_general_loss
from dcr_ds.models.chat import encode_conversation, encode_opened, encode_prompt, turn_end_ids
from dcr_ds.models.plain_text import EncodingError
from dcr_ds.models.reasoning_templates import continued

USER = {"role": "user", "content": "Why?"}
ANSWER = "<b>Because.</b>"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
LAST = "{{ m.content.split('</think>')[-1].lstrip('\n') }}"
R1 = TURNS + LAST + "{% else %}{{ m.content }}{% endif %}" + END + "<think>\n{% endif %}"  # and QwQ
# Qwen3-Thinking-2507: the last answer has its block in conversations, too
QWEN = (
    TURNS + "{% set r = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content %}"
    "<think>\n{{ r }}\n</think>\n\n" + LAST + "{% else %}{{ m.content }}{% endif %}" + END + "<think>\n{% endif %}"
)
V31 = TURNS + LAST + "{% else %}{{ m.content }}{% endif %}" + END + "<think>{% endif %}"  # no line break
CLOSED = TURNS + LAST + "{% else %}{{ m.content }}{% endif %}" + END + "<think>\n\n</think>\n\n{% endif %}"
KEPT = TURNS + "{{ m.content }}{% else %}{{ m.content }}{% endif %}" + END + "<think>\n{% endif %}"  # whole content
HYBRID = QWEN.replace("assistant\n<think>\n{% endif %}", "assistant\n{% endif %}")  # Qwen3: the model writes the block
BRACKETS = TURNS + "{{ m.content }}{% else %}{{ m.content }}{% endif %}" + END + "[THINK]{% endif %}"
PROMPT = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
REASONED = f"<think>\nHm.\n</think>\n\n{ANSWER}"


def tokenizer_of(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def encoded(template, answer, *before):
    tokenizer = tokenizer_of(template)
    messages = [*before, USER, {"role": "assistant", "content": answer}]
    return tokenizer, encode_conversation(tokenizer, messages), encode_prompt(tokenizer, messages[:-1])


@pytest.mark.parametrize(
    ("template", "answer", "text"),
    [
        (R1, ANSWER, f"<think>\n\n</think>\n\n{ANSWER}"),
        (R1, REASONED, REASONED),
        (R1, f"<think>Hm.</think>{ANSWER}", REASONED),
        (QWEN, ANSWER, f"<think>\n\n</think>\n\n{ANSWER}"),
        (QWEN, REASONED, REASONED),
        (HYBRID, ANSWER, f"<think>\n\n</think>\n\n{ANSWER}"),
        (HYBRID, REASONED, REASONED),
        (V31, ANSWER, f"<think></think>{ANSWER}"),
        (V31, f"<think>Hm.</think>{ANSWER}", f"<think>Hm.</think>{ANSWER}"),
        (CLOSED, ANSWER, f"<think>\n\n</think>\n\n{ANSWER}"),
        (KEPT, ANSWER, f"<think>\n\n</think>\n\n{ANSWER}"),
        (KEPT, f"<think>Hm.</think>\n{ANSWER}", REASONED),
        (KEPT, REASONED, REASONED),
        (BRACKETS, ANSWER, f"[THINK][/THINK]{ANSWER}"),
        (R1, "<think", "<think>\n\n</think>\n\n<think"),
    ],
)
def test_answers_are_where_the_model_generates_them(template, answer, text):
    tokenizer, conversation, prompt = encoded(template, answer)
    assert tokenizer.decode(conversation.ids) == f"{PROMPT}{text}<|im_end|>"
    assert conversation.ids[: conversation.prompt_tokens] == prompt  # as in evaluation
    assert conversation.ids[-1] in turn_end_ids(tokenizer)


@pytest.mark.parametrize("template", [R1, V31, KEPT, QWEN, HYBRID])
def test_only_an_added_block_is_marked(template):
    tokenizer, conversation, _ = encoded(template, ANSWER)
    answer = conversation.ids[conversation.prompt_tokens + conversation.added_tokens :]
    assert tokenizer.decode(answer) == f"{ANSWER}<|im_end|>" and conversation.added_tokens > 0
    assert encoded(template, REASONED)[1].added_tokens == 0
    assert encoded(CLOSED, ANSWER)[1].added_tokens == 0


def test_earlier_turns_stay_as_the_template_writes_them():
    tokenizer, conversation, prompt = encoded(R1, ANSWER, USER, {"role": "assistant", "content": REASONED})
    assert tokenizer.decode(prompt) == f"{PROMPT}{ANSWER}<|im_end|>\n{PROMPT}<think>\n"
    assert tokenizer.decode(conversation.ids).count("</think>") == 1


@pytest.mark.parametrize(
    ("template", "answer", "problem"),
    [
        (CLOSED, REASONED, "remove the reasoning, or set model.chat_template_kwargs"),
        (KEPT, "<think>\tHm.", "a block of reasoning that never ends"),
        (R1.replace("<think>\n", ""), REASONED, "the chat template leaves it out"),  # it was, without a word
    ],
)
def test_rows_that_do_not_fit_the_mode(template, answer, problem):
    with pytest.raises(EncodingError, match=problem):
        encoded(template, answer)


@pytest.mark.parametrize("opened", ["Answer: ", "<|begin_of_thought|>", "<think>\nOkay, "])
def test_other_differences_are_refused_with_advice(opened):
    with pytest.raises(UserError, match="not a token prefix.*use a template that writes the same"):
        encoded(R1.replace("<think>\n", opened), ANSWER)


def test_a_difference_before_the_block_is_refused():
    assert continued("system think<think>\n", "system answer", "answer") is None
    assert continued("user: <think>\n", "human: answer", "answer") is None


def test_a_given_opening_follows_the_block():
    ids = encode_opened(tokenizer := tokenizer_of(R1), [USER], "Sure:")
    assert tokenizer.decode(ids) == f"{PROMPT}<think>\n\n</think>\n\nSure:"


def test_refusal_openings_come_after_the_block():
    tokenizer = tokenizer_of(R1)
    openings = find_openings(tokenizer, ["I cannot do that."] * 5, ["Yes, gladly."] * 5, ["I'm sorry"])
    assert tokenizer.decode(list(openings.lead)) == "\n</think>\n\n"
    assert all(not opening.text.startswith("\n") for opening in openings.openings)


def test_the_general_loss_leaves_the_added_block_out(tmp_path):
    from dcr_ds.data import Conversation

    tokenizer = tokenizer_of(R1)
    row = Conversation("1", (USER, {"role": "assistant", "content": ANSWER}))
    loss = prepare_general_loss(tmp_path / "loss.json", [row], tokenizer, {}, None)
    (conversation,) = loss.conversations
    assert tokenizer.decode(conversation.ids[conversation.prompt_tokens :]) == f"{ANSWER}<|im_end|>"
