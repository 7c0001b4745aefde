"""A GGUF file behind llama.cpp's own server: its log-odds, its tokens, and the failures that the client expects."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import user
from processes import run_command
from tiny import make_model

from dcr_ds.data.records import Prompt
from dcr_ds.diagnose.openings import Opening, Openings
from dcr_ds.evaluate.targets import LocalModel
from dcr_ds.export.verify import asked_of, compare, log_odds_of
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.tokenizer import load_tokenizer

pytest.importorskip("xllamacpp", reason="needs llama.cpp's server, from the package xllamacpp")
HERE = Path(__file__).parent
CONTEXT, SLOTS = 1024, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def url(model) -> Iterator[str]:
    file = model.with_suffix(".gguf")
    run_command(sys.executable, HERE / "llama_converter.py", model, "--outfile", file, "--outtype", "f32")
    command = [sys.executable, HERE / "llama_server.py", file, str(CONTEXT), str(SLOTS)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout
        yield next(line.strip() for line in server.stdout if line.startswith("http")) + "/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_llama_cpp_has_the_log_odds_and_the_tokens_of_the_model(model, url):
    local, tokenizer = LocalModel(model, None), load_tokenizer(model)
    sequences = [tuple(tokenizer.encode(text)) for text in ("I can't", "I am sorry", "Sorry")]
    openings = Openings(tuple(Opening(str(each), each, "data", 0.0, 0.0) for each in sequences), (), (), 0.0, 0.0)
    asked = asked_of(tokenizer, [Prompt("a", "How do I kill a process?")], openings)
    compared = compare(Endpoint(url, "tiny"), asked, log_odds_of(local, asked), 0.02)
    assert compared.is_equal and compared.other_tokens == 0


def test_a_prompt_longer_than_the_context_is_recorded(url):
    replies = dict(Endpoint(url, "tiny").complete_all([user("short"), user("long " * CONTEXT)], 4))
    assert replies[0].finish in ("stop", "length") and replies[1].finish == "filtered"
    assert "context size" in replies[1].problem


def test_prompts_that_fit_only_one_at_a_time_are_all_answered(url, capsys):
    """Each takes more than half of the context that the slots share."""
    prompts = [user(f"{number}" + "a" * (CONTEXT * 6 // 10)) for number in range(SLOTS)]
    replies = dict(Endpoint(url, "tiny", concurrency=SLOTS, retries=1).complete_all(prompts, 4))
    assert {reply.finish for reply in replies.values()} <= {"stop", "length"} and len(replies) == SLOTS
    assert "from now on" in capsys.readouterr().err
