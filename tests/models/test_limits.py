"""Token ids beyond the embedding, the context of a model, and templates that print today's date."""

import json
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from tiny import TEMPLATE, make_model, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from dcr_ds.errors import UserError
from dcr_ds.models.batches import token_batch
from dcr_ds.models.chat import encode_prompt
from dcr_ds.models.dates import TODAY
from dcr_ds.models.limits import ModelLimits, context_of, limits_of, model_limits, padding_id
from dcr_ds.models.tokenizer import load_tokenizer

EXTRA = "<|extra|>"
DATED = "{%- if not date is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- endif %}Today: {{ date }}\n"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192}


def save(tokenizer, folder, **config):
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def extended(tmp_path):
    """A tokenizer with a token beyond the 259 rows of its model's embedding."""
    tokenizer = make_tokenizer()
    assert len(tokenizer) == 259
    tokenizer.add_tokens([EXTRA])
    return save(tokenizer, tmp_path, vocab_size=259)


def test_a_token_outside_the_vocabulary_is_named(extended):
    tokenizer = load_tokenizer(extended)
    assert encode_prompt(tokenizer, "as usual")
    with pytest.raises(UserError, match=r"token 259 \('<\|extra\|>'\) is not in .* ends at 258 .*resize_token_emb"):
        encode_prompt(tokenizer, f"what is {EXTRA}?")


def test_a_template_that_writes_such_a_token_is_refused(extended):
    tokenizer = load_tokenizer(extended)
    tokenizer.chat_template = TEMPLATE + EXTRA
    with pytest.raises(UserError, match="token 259"):
        encode_prompt(tokenizer, "as usual")


def test_an_adapters_tokenizer_knows_its_model(extended, tmp_path_factory):
    adapter = tmp_path_factory.mktemp("adapter")
    make_tokenizer().save_pretrained(adapter)
    assert limits_of(load_tokenizer(adapter)) == ModelLimits()
    assert limits_of(load_tokenizer(adapter, model=extended)).rows == 259


@pytest.mark.parametrize("eos", ["<|im_end|>", EXTRA])
def test_the_padding_token_is_in_the_vocabulary(extended, eos):
    tokenizer = load_tokenizer(extended)
    assert padding_id(tokenizer) == tokenizer.pad_token_id == 0
    tokenizer.pad_token, tokenizer.eos_token = EXTRA, eos
    assert padding_id(tokenizer) == (2 if eos == "<|im_end|>" else 0)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({}, None),
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 32768, "sliding_window": 4096}, 32768),
        ({"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 131072, "rope_parameters": YARN}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": LLAMA3}, 131072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2}}, 4096),
        ({"max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
          "rope_scaling": {"type": "su", "short_factor": [1.0]}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "su", "short_factor": [1.0]}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
          "model_type": "gemma3_text"}, 4096),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
    ],
)  # fmt: skip
def test_context(config, context):
    assert context_of(config) == context


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "phi3"])
def test_limits_of_saved_models(tmp_path, model_type):
    make_model(tmp_path, model_type, layers=1)
    assert model_limits(tmp_path) == ModelLimits(300, 512)
    assert AutoConfig.from_pretrained(tmp_path).max_position_embeddings == 512


def test_context_of_a_config_that_transformers_saved(tmp_path):
    make_model(tmp_path, layers=1, max_position_embeddings=64, rope_parameters={"rope_theta": 1e4, **YARN,
               "original_max_position_embeddings": 64})  # fmt: skip
    assert model_limits(tmp_path).context == 256


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


@pytest.mark.parametrize(
    ("model_type", "positions", "rope"),
    [
        ("phi3", 512, LONGROPE | {"original_max_position_embeddings": 32}),
        ("llama", 32, {"rope_type": "dynamic", "factor": 4.0}),
    ],
)
def test_within_the_context_a_row_does_not_depend_on_the_others_of_its_batch(tmp_path, model_type, positions, rope):
    """Beyond the original context, these rope types change the frequencies of all rows of a forward pass."""
    make_model(tmp_path, model_type, layers=2, max_position_embeddings=positions, original_max_position_embeddings=32,
               rope_parameters={"rope_theta": 1e4, **rope})  # fmt: skip
    model, context = AutoModelForCausalLM.from_pretrained(tmp_path).get_decoder(), model_limits(tmp_path).context

    def hidden(*lengths):
        batch = token_batch([list(range(3, 3 + length)) for length in lengths], False, torch.device("cpu"))
        return batch.tokens_of(model(**batch.inputs, use_cache=False).last_hidden_state)[:9]

    assert context == 32
    torch.testing.assert_close(hidden(9, context), hidden(9))
    assert not torch.allclose(hidden(9, context + 1), hidden(9), atol=1e-2)


def test_a_date_in_the_template_does_not_depend_on_the_day(tmp_path, monkeypatch):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = DATED + TEMPLATE
    tokenizer.save_pretrained(tmp_path)

    def rendered_in(year):
        """The prompt, and the template as transformers renders it, in some year."""
        clock = SimpleNamespace(now=lambda: datetime(year, 1, 9))
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)
        loaded = load_tokenizer(tmp_path)
        plain = loaded.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
        return loaded.decode(encode_prompt(loaded, "hello")), plain

    (ours, plain), (later, plain_later) = rendered_in(2031), rendered_in(2032)
    assert plain != plain_later and "09 Jan 2031" in plain
    assert ours == later and "Today: 26 Jul 2024\n<|im_start|>user" in ours


def test_a_pad_token_that_the_model_lacks_is_replaced(extended):
    tokenizer = load_tokenizer(extended)
    tokenizer.pad_token = EXTRA
    tokenizer.save_pretrained(extended)
    loaded = load_tokenizer(extended)
    assert loaded.pad_token_id == loaded.eos_token_id == 2


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%B %-d, %Y", "%A", "%H:%M:%S", "%c", "no date", "%j %y"])
@pytest.mark.parametrize("start", ["", "\n", "  \n\n"])
def test_the_date_is_written_as_strftime_does(tmp_path, form, start):
    """The text around it stays unchanged."""
    text = start + "{{ strftime_now('%s') }}|{%% set d = strftime_now('%s') %%}\n{{ d }}" % (form, form)  # noqa: UP031
    tokenizer = make_tokenizer()
    tokenizer.chat_template = text + "{{ messages[0].content }}"
    date = TODAY.strftime(form)
    assert tokenizer.decode(encode_prompt(tokenizer, "x")) == start + f"{date}|{date}x"
