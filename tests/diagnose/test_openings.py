import pytest
from tiny import TEMPLATE, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dcr_ds.diagnose.openings import find_openings
from dcr_ds.errors import UserError

REFUSALS = ["I cannot help with that."] * 6 + ["I can't do this."] * 3 + ["Sorry, no."] * 4 + ["That would hurt."]
ORDINARY = ["I think it is blue.", "Soap works on grease.", "That is a roof.", "Paris.", "In May."] * 8
PHRASES = ["i'm sorry", "As an AI", "Hello!", "illegal", "I cannot", "as a language model, i was trained to"]


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE trained on the words of these tests, so that common words are single tokens."""
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, min_frequency=2, vocab_size=600)
    tokenizer.train_from_iterator([*REFUSALS, *ORDINARY, *PHRASES] * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[2],
        chat_template=TEMPLATE,
    )  # fmt: skip


def texts(openings):
    return {opening.text for opening in openings.openings}


def test_openings_come_from_refusals_and_phrases(tokenizer):
    """Each has the shortest length that ordinary answers do not share: "I" also starts "I think"."""
    openings = find_openings(tokenizer, REFUSALS, ORDINARY, PHRASES)
    assert texts(openings) == {"I cannot", "I can't", "Sorry", "I'm sorry", "As an AI"}
    sources = {opening.text: opening.source for opening in openings.openings}
    assert sources["Sorry"] == sources["I cannot"] == "data" and sources["As an AI"] == "phrases"
    assert openings.openings[0].text == "I cannot" and openings.openings[0].refusals == pytest.approx(6 / 14)


def test_no_opening_is_a_prefix_of_another(tokenizer):
    sequences = [opening.tokens for opening in find_openings(tokenizer, REFUSALS, ORDINARY, PHRASES).openings]
    for first in sequences:
        assert not [other for other in sequences if other != first and other[: len(first)] == first]
    assert len(set(sequences)) == len(sequences)


def test_coverage_counts_answers_once(tokenizer):
    openings = find_openings(tokenizer, REFUSALS, ORDINARY, PHRASES)
    sequences = [opening.text for opening in openings.openings]
    covered = sum(answer.startswith(tuple(sequences)) for answer in REFUSALS) / len(REFUSALS)
    assert openings.refusals_covered == pytest.approx(covered) and covered >= 13 / 14
    assert openings.ordinary_covered == 0


def test_first_tokens_shared_with_ordinary_answers_are_reported(tokenizer):
    first_tokens = {
        first.text: first for first in find_openings(tokenizer, REFUSALS, ORDINARY, ["As an AI"]).first_tokens
    }
    assert first_tokens["I"].shared and first_tokens["I"].refusals == pytest.approx(9 / 14)
    assert first_tokens["I"].ordinary == pytest.approx(1 / 5)
    assert not first_tokens["Sorry"].shared and first_tokens["Sorry"].ordinary == 0


def test_a_phrase_that_starts_ordinary_answers_is_not_an_opening(tokenizer):
    usual = ["I don't mind.", "I do not mind."] * 50
    assert "I do not" in texts(find_openings(tokenizer, [], [], ["I do not", "Sorry"]))
    assert texts(find_openings(tokenizer, [], usual, ["I do not", "Sorry"])) == {"Sorry"}


def test_the_template_decides_on_leading_space_and_lead(tokenizer):
    """If the template writes a space and a thought before each answer, both are the lead and not part of openings."""
    plain = find_openings(tokenizer, [], [], ["Sorry"])
    assert plain.lead == () and plain.openings[0].tokens == tuple(tokenizer.encode("Sorry"))
    spaced = make_tokenizer()  # one token per byte
    spaced.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}| ~ {{ m.content }}<|im_end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}|{% endif %}"
    )
    openings = find_openings(spaced, [], [], ["Sorry"])
    assert openings.lead == tuple(spaced.encode(" ~ ")) and openings.openings[0].tokens == tuple(spaced.encode("Sorry"))


def test_answers_without_openings_are_an_error(tokenizer):
    with pytest.raises(UserError, match="no refusal opening found"):
        find_openings(tokenizer, ["Paris."] * 5, ["Paris."] * 5, ["Hello!"])


def test_a_template_that_drops_answers_is_an_error():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{% if m.role == 'user' %}{{ m.content }}{% endif %}]{% endfor %}"
    with pytest.raises(UserError, match="leaves out the text of answers"):
        find_openings(tokenizer, [], [], ["Sorry"])
