"""Ollama's template renders conversations as the chat template does, or is left out."""

import pytest
from tiny import make_tokenizer

from dcr_ds.export.modelfile import frame_of
from dcr_ds.models.rendering import render

TURNS = [("user", "one?"), ("assistant", "yes"), ("user", "two?"), ("assistant", "no"), ("user", "three?")]
CHATML = make_tokenizer().chat_template
# as SmolLM2's
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
# as Qwen3's
EMPTY_REASONING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
WITH_BOS = "{{ bos_token }}" + CHATML
MERGED_SYSTEM = (  # into the first user message, as Gemma's
    "{% if messages[0].role == 'system' %}{% set start = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set start = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}<|im_start|>{{ message.role }}\n"
    "{{ start if loop.first else '' }}{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
NUMBERED = "{% for message in messages %}{{ loop.index }} {{ message.content }}\n{% endfor %}assistant: "
LAST_ONLY = "<|im_start|>{{ messages[-1].content }}<|im_end|>"


def frame(template, adds_bos=False):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return frame_of(tokenizer, adds_bos), tokenizer


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, EMPTY_REASONING, WITH_BOS, MERGED_SYSTEM])
@pytest.mark.parametrize("system", [[], [("system", "Be brief.")]])
def test_conversations_are_rendered_as_by_the_chat_template(template, system):
    found, tokenizer = frame(template)
    for length in (1, 3, 5):
        turns = [*system, *TURNS[:length]]
        messages = [{"role": role, "content": content} for role, content in turns]
        assert found.rendered(turns) == render(tokenizer, messages, add_generation_prompt=True)


def test_a_bos_token_that_llama_cpp_adds_is_left_out():
    with_bos, without = frame(WITH_BOS)[0], frame(WITH_BOS, adds_bos=True)[0]
    assert with_bos.start == "<|im_start|>" + without.start and without == frame(CHATML)[0]


def test_a_template_that_rejects_system_messages_has_a_frame_without():
    found = frame(NO_SYSTEM)[0]
    assert found.system is None and ".System" not in found.in_go()


@pytest.mark.parametrize("template", [NUMBERED, LAST_ONLY])
def test_a_template_with_other_text_per_turn_has_no_frame(template):
    assert frame(template)[0] is None


def test_text_that_go_would_read_as_code_is_left_out():
    assert frame(CHATML.replace("<|im_start|>{{", "{{ '{{' }}{{"))[0].in_go() is None


@pytest.mark.parametrize("character", ["\u200b", "\u00a0"])
def test_characters_that_the_parser_of_modelfiles_drops_are_not_written(character):
    assert frame(CHATML.replace("assistant\n", f"assistant{character}\n"))[0].in_go() is None
