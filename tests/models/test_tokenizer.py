"""Tokenizers with their own, a shipped or another chat template."""

import json
import shutil

import pytest
from tiny import TEMPLATE, make_model, make_tokenizer
from transformers import AutoTokenizer

from dcr_ds.errors import UserError
from dcr_ds.models.chat import encode_prompt
from dcr_ds.models.tokenizer import load_tokenizer, template_hash
from dcr_ds.models.tokenizer_files import keep_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


def test_the_hash_depends_only_on_the_template(folder, tmp_path):
    def hash_with(template):
        file = tmp_path / "template.jinja"
        file.write_text(template)
        return template_hash(load_tokenizer(folder, str(file)))

    own = template_hash(load_tokenizer(folder))
    assert own == template_hash(load_tokenizer(folder)) == hash_with(TEMPLATE)
    assert own != hash_with(TEMPLATE + " ")
    assert own != template_hash(load_tokenizer(folder, "instruction"))


def test_a_base_tokenizer_needs_a_template(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"set model\.chat_template to .*: chatml, chatml_system, instruction$"):
        load_tokenizer(tmp_path)
    assert encode_prompt(load_tokenizer(tmp_path, "instruction"), "a question")


def test_an_unknown_template_is_named_with_the_shipped_ones(folder):
    with pytest.raises(
        UserError, match=r"model\.chat_template: no such file 'alpacca'.*\(chatml, chatml_system, instruction\)"
    ):
        load_tokenizer(folder, "alpacca")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPTNeoXTokenizer", "PreTrainedTokenizerFast"])
def test_tokens_are_those_of_tokenizer_json_whatever_its_class(tmp_path, name):
    """As of SmolLM2: each digit is a token, and transformers 5 builds the pre-tokenizer of some classes itself."""
    source, trained = make_model(tmp_path / "source", layers=1), tmp_path / "trained"
    state = json.loads((source / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": True}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, state["pre_tokenizer"]]}
    state["model"]["vocab"]["12"] = len(state["model"]["vocab"])
    state["model"]["merges"] = [["1", "2"]]
    (source / "tokenizer.json").write_text(json.dumps(state))
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": name}))
    shutil.copytree(source, trained)
    keep_tokenizer(source, None, trained)
    for tokenizer in (load_tokenizer(source), AutoTokenizer.from_pretrained(trained)):
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode("1212")) == ["1", "2", "1", "2"]
        assert tokenizer.eos_token == "<|im_end|>"
    assert encode_prompt(load_tokenizer(trained), "1212") == encode_prompt(load_tokenizer(source), "1212")


def test_a_missing_pad_token_is_eos(tmp_path, folder):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<|im_end|>"
    assert load_tokenizer(folder).pad_token == "<|pad|>"
