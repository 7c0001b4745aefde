"""The log-odds of a served model are those of its weights, read as vLLM and llama.cpp return log-probabilities.

Both servers are stand-ins over a real model. test_llama_server.py runs llama.cpp's own.
"""

import json
from pathlib import Path

import pytest
import torch
from chat_server import Reply, refuses, serving
from small_runs import the_error
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.cli import main
from dcr_ds.diagnose.log_odds import refusal_log_odds
from dcr_ds.diagnose.openings import Opening, Openings
from dcr_ds.errors import UserError
from dcr_ds.export.served import served_log_odds
from dcr_ds.models.chat import encode_prompt
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.tokenizer import load_tokenizer

SHORT = ["--prompts", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


def log_probabilities(loaded, tokens: list[int]) -> list[dict | None]:
    """As in vLLM's replies: nothing for the first token, then one object per token, by its id."""
    logits = loaded(torch.tensor([tokens])).logits[0].log_softmax(-1)
    values = logits[:-1].gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
    rows = [{str(token): {"logprob": value, "rank": 1}} for token, value in zip(tokens[1:], values, strict=True)]
    return [None, *rows]


def vllm(folder: Path, tokenizer_of: Path):
    """The paths of vLLM's server that are used, over a real model; the choices come in another order."""
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(tokenizer_of)

    @torch.no_grad()
    def reply(number: int, request: dict) -> Reply:
        if "messages" in request:
            return Reply(json.dumps({"tokens": encode_prompt(tokenizer, request["messages"])}))
        assert request["prompt_logprobs"] == 0
        rows = enumerate(log_probabilities(loaded, tokens) for tokens in request["prompt"])
        choices = [{"index": index, "text": "", "prompt_logprobs": row} for index, row in rows]
        return Reply(json.dumps({"choices": choices[::-1]}))

    return reply


def llama_cpp(folder: Path, is_biased: bool):
    """The path of llama.cpp's server that is used.

    Args:
        is_biased: report the probability after the bias, as OpenAI's servers do.
    """
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def reply(number: int, request: dict) -> Reply:
        if "logit_bias" not in request:
            return Reply(json.dumps({"choices": [{"index": 0, "text": "a", "logprobs": None}]}))
        ((token, bias),) = request["logit_bias"]
        logits = loaded(torch.tensor([request["prompt"]])).logits[0, -1]
        chosen = logits.index_add(0, torch.tensor([token]), torch.tensor([bias]))
        log_p = (chosen if is_biased else logits).log_softmax(-1)
        generated = {"id": int(chosen.argmax()), "logprob": float(log_p[token])}
        return Reply(json.dumps({"choices": [{"index": 0, "logprobs": {"content": [generated]}}]}))

    return reply


@pytest.mark.parametrize("is_biased", [False, True])
def test_tokens_that_are_forced_have_the_log_odds_of_the_weights(model, is_biased):
    """Probabilities after the bias are not taken for the model's."""
    prompt, tokens = [5, 6, 7], [(10,), (11, 12), (11, 13)]
    openings = Openings(tuple(Opening(str(each), each, "data", 0.0, 0.0) for each in tokens), (), (8,), 0.0, 0.0)
    with serving(llama_cpp(model, is_biased)) as server:
        endpoint = Endpoint(server.url, "tiny")
        if is_biased:
            with pytest.raises(UserError, match="no log-probabilities of the model's tokens"):
                served_log_odds(endpoint, [prompt], openings)
            return
        values = served_log_odds(endpoint, [prompt], openings)
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    expected = refusal_log_odds(loaded, ["a"], [prompt], openings)[0]["log_odds"]
    assert values == pytest.approx([expected], abs=1e-4)
    assert len(server.requests) == 1 + 4  # the beginning that two openings share is read once


def test_the_same_weights_have_the_same_log_odds(model, capsys):
    with serving(vllm(model, model)) as server:
        assert main(["verify", str(model), f"{server.url}#tiny", *SHORT, "--bound", "0.001"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[3:] == ["0", "equal"]
    assert {request["path"] for request in server.requests} == {"/v1/completions", "/tokenize"}


def test_other_weights_are_a_difference(model, tmp_path, capsys):
    other = make_model(tmp_path / "other", seed=1)
    with serving(vllm(other, model)) as server:
        assert main(["verify", str(model), f"{server.url}#tiny", *SHORT, "--bound", "0.001"]) == 1
    assert "differs" in capsys.readouterr().out


def test_a_server_without_these_paths_is_named(model, capsys):
    with serving(lambda number, request: refuses(404, "no such path")) as server:
        assert main(["verify", str(model), f"{server.url}#tiny", *SHORT]) == 2
    assert "/v1/completions" in the_error(capsys.readouterr().err)


def test_a_server_without_log_probabilities_of_prompts(model, capsys):
    def reply(number: int, request: dict) -> Reply:
        return Reply(json.dumps({"choices": [{"index": 0, "text": ""}]}))

    with serving(reply) as server:
        assert main(["verify", str(model), f"{server.url}#tiny", *SHORT]) == 2
    assert "serve the model with one of them" in the_error(capsys.readouterr().err)
