"""Variables of chat templates are set in the template: the same tokens in training, evaluation, and after saving."""

import pytest
from tiny import make_tokenizer
from transformers import AutoTokenizer

from dcr_ds.errors import UserError
from dcr_ds.models.chat import encode_prompt
from dcr_ds.models.tokenizer import load_tokenizer, template_hash
from dcr_ds.models.tokenizer_files import keep_tokenizer
from dcr_ds.recipe import ChatTemplate, Recipe, load_recipe

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"
OFF, ON = (ChatTemplate(None, {"enable_thinking": value}) for value in (False, True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("tokenizer"), make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def rendered(tokenizer):
    return tokenizer.decode(encode_prompt(tokenizer, "Why?"))


def test_a_variable_reaches_the_template(folder):
    plain, off, on = (load_tokenizer(folder, template) for template in (None, OFF, ON))
    assert rendered(off) == rendered(plain) + EMPTY and rendered(on) == rendered(plain)
    assert len({template_hash(tokenizer) for tokenizer in (plain, off, on)}) == 3


def test_it_renders_as_the_argument_of_transformers_does(folder):
    question = [{"role": "user", "content": "Why?"}]
    options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
    expected = load_tokenizer(folder).apply_chat_template(question, **options)
    assert rendered(load_tokenizer(folder, OFF)) == expected


def test_a_trained_model_is_saved_with_its_mode(folder, tmp_path):
    keep_tokenizer(folder, OFF, tmp_path)
    assert rendered(load_tokenizer(tmp_path)) == rendered(load_tokenizer(folder, OFF))
    assert rendered(load_tokenizer(tmp_path, OFF)) == rendered(load_tokenizer(folder, OFF))
    assert template_hash(load_tokenizer(tmp_path, OFF)) == template_hash(load_tokenizer(folder, OFF))
    alone = AutoTokenizer.from_pretrained(tmp_path)
    assert alone.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, tokenize=False
    ).endswith(EMPTY)


def test_another_mode_than_that_of_the_training_is_refused(folder, tmp_path):
    keep_tokenizer(folder, OFF, tmp_path)
    with pytest.raises(UserError, match="enable_thinking is true, but the model was trained with false"):
        load_tokenizer(tmp_path, ON)


def test_a_variable_that_the_template_does_not_read_is_refused(folder):
    with pytest.raises(UserError, match="no variable 'enable_thought'"):
        load_tokenizer(folder, ChatTemplate(None, {"enable_thought": False}))


def test_values_of_every_kind_and_a_template_that_begins_with_a_line_break(folder, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("\n{{ effort }}|{{ budget }}|{{ share }}\n" + TEMPLATE)
    values = {"effort": 'low "é', "budget": 3, "share": 0.5, "enable_thinking": True}
    text = rendered(load_tokenizer(folder, ChatTemplate(str(file), values)))
    assert text.startswith('\nlow "é|3|0.5\n')


def test_a_recipe_sets_variables_and_keeps_their_types():
    recipe = load_recipe(None, [("model.chat_template_kwargs.enable_thinking", "false")])
    assert recipe.model.template == OFF
    assert Recipe.model_validate(recipe.model_dump(mode="json")).model.template == OFF
    recipe = load_recipe(None, [("model.chat_template_kwargs", '{"effort": "low", "budget": 3}')])
    assert recipe.model.chat_template_kwargs == {"effort": "low", "budget": 3}
