"""Prompts and conversations as tokens: one BOS, the prompt a prefix, the answer and its end supervised."""

import re

import pytest
from tiny import TEMPLATE, make_tokenizer

from dcr_ds.errors import UserError
from dcr_ds.models.chat import decode_answer, encode_conversation, encode_prompt, forget_encoded, turn_end_ids
from dcr_ds.models.locate import cache_folder
from dcr_ds.models.tokenizer import load_tokenizer

DEMO = cache_folder() / "smollm2-135m"
PAIR = [{"role": "user", "content": "how do I kill a process?"}, {"role": "assistant", "content": "use kill, é 火"}]
LONG = [
    {"role": "system", "content": "be short"},
    *PAIR,
    {"role": "user", "content": "and\n\ntwo?"},
    {"role": "assistant", "content": "killall"},
]
CONVERSATIONS = {
    "one turn": PAIR,
    "two turns": PAIR + PAIR,
    "system": LONG,
    "empty question": [{"role": "user", "content": ""}, PAIR[1]],
}
TURN = "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
LOOP = "{% for message in messages %}" + TURN + "<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


def with_template(folder, template):
    file = folder / "template.jinja"
    file.write_text(template)
    return load_tokenizer(folder, str(file))


@pytest.fixture(params=[None, "chatml", "instruction", "chatml_system", "demo"])
def tokenizer(request, folder):
    if request.param == "demo":
        if not DEMO.is_dir():
            pytest.skip(f"the demo model is not at hand in {DEMO}")
        return load_tokenizer(DEMO)
    return load_tokenizer(folder, request.param)


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_answer_and_its_end_are_supervised_and_nothing_else(tokenizer, messages):
    encoded = encode_conversation(tokenizer, messages)
    supervised = encoded.ids[encoded.prompt_tokens :]
    assert tokenizer.decode(supervised[:-1]) == messages[-1]["content"]
    assert supervised[-1] in turn_end_ids(tokenizer)
    assert not set(supervised[:-1]) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_prompt_is_a_prefix_of_the_conversation(tokenizer, messages):
    encoded = encode_conversation(tokenizer, messages)
    assert encoded.ids[: encoded.prompt_tokens] == encode_prompt(tokenizer, messages[:-1])
    text = tokenizer.decode(encoded.ids)
    for message in messages:
        assert message["content"] in text


def test_a_text_is_a_conversation_of_one_user_message(tokenizer):
    assert encode_prompt(tokenizer, "hello") == encode_prompt(tokenizer, [{"role": "user", "content": "hello"}])


def test_the_chatml_template_adds_a_system_text_and_ends_answers_with_eos(folder):
    tokenizer = load_tokenizer(folder, "chatml_system")
    tokenizer.eos_token = "<|pad|>"
    encoded = encode_conversation(tokenizer, PAIR)
    text = f"<|im_start|>user\n{PAIR[0]['content']}<|im_end|>\n<|im_start|>assistant\n{PAIR[1]['content']}<|pad|>"
    assert tokenizer.decode(encoded.ids) == f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{text}"
    without = load_tokenizer(folder, "chatml")
    without.eos_token = "<|pad|>"
    assert without.decode(encode_conversation(without, PAIR).ids) == text
    assert tokenizer.decode(encode_prompt(tokenizer, LONG[:2])).startswith("<|im_start|>system\nbe short<|im_end|>\n")


def test_the_instruction_template_writes_one_bos_and_no_other(folder):
    tokenizer = load_tokenizer(folder, "instruction")
    for messages in CONVERSATIONS.values():
        ids = encode_conversation(tokenizer, messages).ids
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_that_adds_a_bos_does_not_double_the_templates(folder):
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(folder, "instruction")
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    assert tokenizer("a").input_ids[0] == bos[1]
    assert encode_prompt(tokenizer, "a").count(bos[1]) == 1


def test_a_doubled_bos_is_refused(folder):
    tokenizer = with_template(folder, "{{ bos_token }}{{ bos_token }}" + LOOP + OPEN)
    with pytest.raises(UserError, match="model.chat_template: .* two BOS tokens"):
        encode_prompt(tokenizer, "a")


def test_a_prompt_that_is_not_a_prefix_is_an_error(folder):
    """Some templates add an instruction only when an answer is generated."""
    tokenizer = with_template(folder, "{% if add_generation_prompt %}Answer!\n{% endif %}" + LOOP + OPEN)
    with pytest.raises(UserError, match="model.chat_template: the prompt is not a token prefix"):
        encode_conversation(tokenizer, PAIR)


def test_an_answer_without_an_end_is_refused(folder):
    tokenizer = with_template(folder, "{% for message in messages %}" + TURN + "\n{% endfor %}" + OPEN)
    with pytest.raises(UserError, match="model.chat_template: no end-of-turn token follows the answer"):
        encode_conversation(tokenizer, PAIR)


def test_a_template_that_rejects_a_role_is_a_user_error(folder):
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer = with_template(folder, refusal + LOOP + OPEN)
    encode_conversation(tokenizer, PAIR)
    with pytest.raises(UserError, match="model.chat_template: .*no system role"):
        encode_conversation(tokenizer, LONG)


@pytest.mark.parametrize(
    ("loop", "part"),
    [("{% for message in messages if message['role'] != 'system' %}", "the system prompt"),
     ("{% for message in messages[-2:] %}", "earlier turns")],
)  # fmt: skip
def test_a_template_that_leaves_out_messages_in_silence_is_refused(folder, loop, part):
    """The first Phi-3 leaves out system prompts; conversations that differ in them would have the same tokens."""
    tokenizer = with_template(folder, loop + TURN + "<|im_end|>\n{% endfor %}" + OPEN)
    messages = LONG[:1] + PAIR if part == "the system prompt" else PAIR + PAIR
    assert encode_conversation(tokenizer, PAIR).ids
    for encode, given in ((encode_conversation, messages), (encode_prompt, messages[:-1])):
        with pytest.raises(UserError, match=f"leaves out {part}"):
            encode(tokenizer, given)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LOOP, "lack the start of the answer, '<|im_start|>assistant'"),
        # of a model of text and images, whose contents are lists of parts
        (LOOP.replace("message['content']", "message['content'] | selectattr('text') | map(attribute='text') | join")
         + OPEN, "leaves out the text of messages"),
        ("{% for message in messages if message['role'] == 'user' %}" + TURN + "<|im_end|>\n{% endfor %}" + OPEN,
         "leaves out the text of answers"),
    ],
)  # fmt: skip
def test_a_template_that_leaves_out_texts_or_the_header_of_answers_is_refused(folder, template, words):
    tokenizer = with_template(folder, template)
    with pytest.raises(UserError, match=re.escape(words)):
        encode_conversation(tokenizer, PAIR)


def test_a_template_that_leaves_out_the_last_prompt_is_refused(folder):
    tokenizer = with_template(folder, LOOP.replace("in messages", "in messages[:2]") + OPEN)
    assert encode_conversation(tokenizer, PAIR).ids
    with pytest.raises(UserError, match="leaves out the last of several messages"):
        encode_conversation(tokenizer, PAIR + PAIR)


def test_a_template_whose_prompts_always_open_the_answer_is_accepted(folder):
    """Llama 2 and Mistral write nothing before answers; the first Llama 3 ended each conversation with a header."""
    plain = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    for template in (plain, LOOP + "<|im_start|>assistant\n"):
        encoded = encode_conversation(tokenizer := with_template(folder, template), PAIR)
        answer = tokenizer.decode(encoded.ids[encoded.prompt_tokens :])
        assert answer.strip() == PAIR[-1]["content"] + "<|im_end|>"


def test_a_template_that_is_not_jinja_is_a_user_error(folder):
    with pytest.raises(UserError, match="model.chat_template"):
        encode_prompt(with_template(folder, "{% if %}"), "a")


def test_a_second_end_after_the_end_of_turn_is_not_supervised(folder):
    """Phi-3's template ends a conversation with <|end|>, a line break, <|endoftext|>."""
    loop = LOOP.replace("<|im_end|>", "<|pad|>")
    tokenizer = with_template(folder, loop + "{% if not add_generation_prompt %}<|im_end|>{% endif %}" + OPEN)
    encoded = encode_conversation(tokenizer, PAIR)
    assert tokenizer.decode(encoded.ids[encoded.prompt_tokens :]) == PAIR[-1]["content"] + "<|pad|>"
    assert set(turn_end_ids(tokenizer)) == set(tokenizer.convert_tokens_to_ids(["<|pad|>", "<|im_end|>"]))


def test_a_special_token_before_the_answer_does_not_end_a_turn(folder):
    """Qwen3's template starts an answer with an empty think block; generation must not stop at its first token."""
    think = "{% if message['role'] == 'assistant' %}<|pad|>\n{% endif %}"
    tokenizer = with_template(folder, LOOP.replace("{{ message['content']", think + "{{ message['content']") + OPEN)
    assert turn_end_ids(tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    encoded = encode_conversation(tokenizer, PAIR)
    assert tokenizer.decode(encoded.ids[encoded.prompt_tokens :]) == f"<|pad|>\n{PAIR[-1]['content']}<|im_end|>"


def test_turns_end_with_eos_and_with_what_the_template_writes(folder):
    chatml = load_tokenizer(folder)
    assert turn_end_ids(chatml) == [chatml.eos_token_id]
    chatml.eos_token = "<|pad|>"  # gemma: <eos> ends a text, <end_of_turn> ends an answer
    assert turn_end_ids(chatml) == chatml.convert_tokens_to_ids(["<|pad|>", "<|im_end|>"])


def test_a_conversation_is_encoded_once_until_it_is_forgotten(folder):
    tokenizer = load_tokenizer(folder)
    first = encode_conversation(tokenizer, PAIR)
    assert encode_conversation(tokenizer, [dict(message) for message in PAIR]) is first
    assert encode_conversation(tokenizer, LONG) != first
    tokenizer.chat_template = TEMPLATE.replace("\n", " ")
    assert encode_conversation(tokenizer, PAIR) != first
    tokenizer.chat_template = TEMPLATE
    forget_encoded(tokenizer)
    again = encode_conversation(tokenizer, PAIR)
    assert again == first and again is not first


# Decoding of answers


def decoded(tokenizer, text, prompt="<|im_start|>assistant\n"):
    ids = (tokenizer(part, add_special_tokens=False).input_ids for part in (prompt, text))
    return decode_answer(tokenizer, *ids)


def test_special_tokens_are_removed_from_answers_except_reasoning_tags(folder):
    tokenizer = load_tokenizer(folder)
    assert decoded(tokenizer, "Sure.<|im_start|>") == "Sure."
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    assert decoded(tokenizer, "[THINK]Why?[/THINK]Sure.") == "[THINK]Why?[/THINK]Sure."
    assert decoded(tokenizer, "Sure.<|im_start|>") == "Sure."


def test_a_tag_opened_by_the_template_is_repeated_before_the_answer(folder):
    tokenizer = load_tokenizer(folder)
    assert decoded(tokenizer, "Why?</think>Sure.", "<|im_start|>assistant\n<think>\n") == "<think>\nWhy?</think>Sure."
    assert decoded(tokenizer, "Sure.", "<|im_start|>assistant\n<think>\n\n</think>\n\n") == "Sure."
