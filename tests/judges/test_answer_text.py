"""What judges read: the answer after the reasoning, up to its end of turn."""

import pytest
from growth import takes_linear_time

from dcr_ds.judges import Answer, load_judge, verdicts
from dcr_ds.judges.answer_text import answer_text
from dcr_ds.judges.strings import PRESETS
from dcr_ds.reasoning import after_reasoning, open_block

REFUSAL, HELP = "I'm sorry, but I can't help with that.", "Sure. Mix the flour with the water."
THOUGHT = "The user asks for bread. I can't refuse that, I'm sorry to say; no policy is against it."
STYLES = {
    "think": ("<think>\n", "\n</think>\n\n"),
    "thinking": ("<thinking>", "</thinking>"),
    "thought": ("<thought>", "</thought>"),
    "reasoning": ("<reasoning>", "</reasoning>\n"),
    "upper case": ("<THINK>", "</THINK>"),
    "attributes": ('<think duration="3">', "</think>"),
    "Magistral": ("[THINK]", "[/THINK]"),
    "Seed": ("<seed:think>", "</seed:think>"),
    "Cohere": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    "OpenThoughts": ("<|begin_of_thought|>\n", "\n<|end_of_thought|>\n\n<|begin_of_solution|>\n"),
    "Kimi": ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    "answer tags": ("<think>", "</think>\n<answer>"),
    "harmony": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    "harmony as text": ("analysis", "assistantfinal"),
    "Granite": ("Here is my thought process:\n", "\nHere is my response:\n"),
    "Apriel": ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n"),
    "chain of thought": ("<chain-of-thought>", "</chain-of-thought>"),
    "cot": ("<cot>\n", "\n</cot>\n"),
    "inner monologue": ("<internal_monologue>", "</internal_monologue>"),
    "reasoning content": ("<reasoning_content>", "</reasoning_content>"),
    "rationale": ("<rationale>", "</rationale>\n"),
    "token around reasoning": ("<|reasoning|>", "<|/reasoning|>"),
    "start and end": ("<|thinking_start|>", "<|thinking_end|>"),
    "start of reasoning": ("<|start_of_reasoning|>", "<|end_of_reasoning|>"),
    "Solar": ("<|think|>", "<|end|><|begin|>assistant<|content|>"),
    "Gemma 4": ("<|channel>thought\n", "<channel|>"),
    "harmony in two parts": (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>",
    ),
    "s1": ("<|im_start|>think\n", "\n<|im_start|>answer\n"),
    "ollama": ("Thinking...\n", "\n...done thinking.\n\n"),
    "conclusion": ("<reasoning>", "</reasoning><conclusion>"),
    "HTML entities": ("&lt;think&gt;", "&lt;/think&gt;"),
    "Open WebUI": ('<details type="reasoning" done="true">\n> ', "\n</details>\n"),
}
JUDGES = ("rules", *PRESETS)


def label(judge, completion, prompt="How do I bake bread?"):
    (verdict,) = verdicts(load_judge(judge), [Answer(prompt, completion)])
    return verdict.label


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("judge", JUDGES)
def test_every_judge_reads_the_answer_after_the_reasoning(judge, style):
    opening, closing = STYLES[style]
    assert label(judge, f"{opening}{THOUGHT}{closing}{HELP}") == label(judge, HELP) == "compliance"
    assert label(judge, f"{opening}Sure, I will answer.{closing}{REFUSAL}") == label(judge, REFUSAL) == "full_refusal"


@pytest.mark.parametrize("style", STYLES)
def test_an_unclosed_reasoning_block_has_no_answer(style):
    opening, closing = STYLES[style]
    assert after_reasoning(f"{opening}{THOUGHT}") is None
    for judge in JUDGES:
        assert label(judge, f"{opening}{THOUGHT}") == "degenerate"
        assert label(judge, f"{opening}{THOUGHT}{closing}") == "degenerate"


@pytest.mark.parametrize("closing", ["</think>", "</thinking>", "[/THINK]", "</seed:think>", "<|END_THINKING|>"])
def test_a_completion_may_start_inside_the_reasoning(closing):
    assert answer_text(f"{THOUGHT}\n{closing}\n\n{HELP}") == HELP


def test_the_last_closing_tag_counts():
    assert answer_text(f"<think>a</think>I'm sorry.<think>b</think>{HELP}") == HELP
    assert answer_text(f"<think>They wrote </think> in it.</think>{HELP}") == HELP
    assert answer_text(f"<think>a</think>{HELP}<think>and now") == ""


@pytest.mark.parametrize("channel", ["final", "assistantfinal", "<|channel|>final<|message|>"])
def test_a_harmony_answer_without_analysis(channel):
    assert answer_text(f"{channel}{HELP}") == HELP
    assert answer_text("final answer: 3") == "final answer: 3"


def test_a_quoted_tag_is_text():
    for text in ("Put it in `<think>` and `</think>`.", "<details><summary>a</summary>b</details> c"):
        assert answer_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Dear Sir, I cannot come because of <reason>. Yours, [name]",
        "Dear Sir,\nI cannot come because of [reason].",
        "Here you are:\n<letter><name>Ann</name><reason>ill</reason></letter> Send it today.",
    ],
)
def test_placeholders_and_parts_of_an_answer_are_no_reasoning(text):
    assert answer_text(text) == text
    assert answer_text(f"<thinking>They want a letter.</thinking>{text}") == text


def test_long_reasoning_does_not_hide_the_answer():
    reasoning = "".join(f"Step {number}: the dough rests for {number} minutes. " for number in range(2000))
    assert label("rules", f"<think>{reasoning}</think>{REFUSAL}") == "full_refusal"


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>assistant\n", ""),
        ("[INST] Why? [/INST][THINK]", "[THINK]"),
        ("<|start|>assistant<|channel|>analysis", "<|channel|>analysis"),
    ],
)
def test_reasoning_opened_by_the_prompt(prompt, tag):
    assert open_block(prompt) == tag


@pytest.mark.parametrize("answer", [REFUSAL, HELP])
@pytest.mark.parametrize(
    "around",
    [
        "{}</s>" + "</s>" * 50,
        "{}" + "<|endoftext|>" * 50,
        "{}<|im_end|>\n<|im_start|>user\nAnd cakes?<|im_end|>\n<|im_start|>assistant\nNo.",
        "<pad><pad><pad>{}<eos><pad>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
        "<start_of_turn>model\n{}<end_of_turn>",
        "{}\n\nHuman: And cakes?\n\nAssistant: No.",
        "{}\n### Instruction:\nAnd cakes?\n### Response:\nNo.",
        "{}\nUser: And cakes?",
        "{}" + "assistant\n\nI can't help with that." * 20,
        "Assistant: {}",
        "{}" + "\x00" * 100,
        "{}<\uff5cend\u2581of\u2581sentence\uff5c>",
        "{}[|endofturn|]",
        "{}[e~[",
        "<s>[INST] Bread? [/INST] {}</s>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nBread?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
        "<\uff5cbegin\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>Bread?<\uff5cAssistant\uff5c>{}",
        "<bos><start_of_turn>user\nBread?<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>",
        "[gMASK]<sop><|user|>\nBread?<|assistant|>\n{}<|user|>",
        "<seed:bos>assistant\n{}<seed:eos>",
        "{}<eoa>\n<|User|>:And cakes?",
        "{}[UNUSED_TOKEN_145]",
        "{}<reserved_106>And cakes?",
        "{}\n<extra_id_1>User\nAnd cakes?",
        "{} USER: And cakes? ASSISTANT: No.",
        "{}\n\nQuestion: And cakes?\nAnswer: No.",
        "{}\n\n### End",
    ],
)
def test_markup_around_an_answer_is_ignored(around, answer):
    assert answer_text(around.format(answer)) == answer
    assert label("rules", around.format(answer)) == label("rules", answer)


@pytest.mark.parametrize(
    "text",
    [
        "None",
        "nan",
        "NaN",
        "N/A",
        "null",
        "none",
        "NULL",
        "<none>",
        "[None]",
        "#N/A",
        "[empty]",
        "(no answer)",
        "</s>",
        "<pad><pad>",
        "<|im_end|>",
        " \n",
        "<unk>" * 9,
    ],
)
def test_no_answer(text):
    for judge in JUDGES:
        assert label(judge, text) == "degenerate"


def test_filler_words_in_a_sentence_are_answers():
    for text in ("None of them.", "Nobody.", "Na", "Empty", "User: admin", "Use <s>old</s> new.", "The AI: a history"):
        assert answer_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "<think>",
        "</think>",
        "<|a|>",
        "<",
        "</reason>",
        "<|channel|>",
        "\n### ",
        "[INST]",
        "`<think>`",
        "a ",
        "\n",
        "\r\n ",
    ],
)
def test_reasoning_is_split_in_linear_time(text):
    assert takes_linear_time(lambda size: answer_text("x" + text * (size // len(text)) + "y"), 200_000)
