"""`dcr-ds evaluate` with a server that it starts: requests, failures, resuming, and the answers of local generation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, torchrun
from tiny import make_reasoning_model, one_thread_environment

from dcr_ds.commands.evaluate import run
from dcr_ds.errors import ServerFailed, UserError
from dcr_ds.evaluate.serving import server as module
from dcr_ds.files import read_json, read_jsonl

SCRIPT = Path(__file__).parents[1] / "evaluate" / "small_server.py"
SMALL = f"{sys.executable} {SCRIPT} {{model}} --host {{host}} --port {{port}}"
TRANSFORMERS = "transformers serve {model} --host {host} --port {port} --device cpu --dtype {dtype}"
SETTINGS = ["--benchmarks", "builtin-toxic", "--limit", "6", "--max-new-tokens", "8", "--judge", "rules"]


@pytest.fixture(autouse=True)
def short_waits(own_environment, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A reasoning model, whose own generation config is not that of an evaluation."""
    folder = make_reasoning_model(tmp_path_factory.mktemp("served") / "model")
    config = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "eos_token_id": 7}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


def folder_of(out: Path, name: str) -> Path:
    return out / name / "evaluate" / "aligned"


def test_requests_of_greedy_decoding_then_log_odds_and_loss(model, tmp_path):
    command = [f"small={model}", *SETTINGS, "--server-command", SMALL, "--out", str(tmp_path)]
    run(command)
    home = folder_of(tmp_path, "small")
    rows = read_jsonl(home / "builtin-toxic" / "generations.jsonl")
    for row in rows:
        tag, _, sent = row["completion"].partition("\n")
        assert tag == "<think>"  # which the chat template opens
        assert json.loads(sent) == {"prompt": row["prompt"], "max_tokens": 8, "temperature": 0.0}
    assert len(rows) == 6 and all(row["template_hash"] for row in rows)
    assert (home / "builtin-toxic" / "log_odds.jsonl").is_file() and (home / "general_loss.json").is_file()
    assert "loading" in (home / "server.log").read_text() and not (home / ".served").exists()
    assert read_json(home / "cost.json")["generated_tokens"] == 12
    (home / "server.log").unlink()
    run(command)
    assert not (home / "server.log").exists()  # nothing was missing, so no server was started


def test_a_server_that_ends_leaves_its_answers_to_the_next(model, tmp_path, monkeypatch):
    command = [f"small={model}", *SETTINGS, "--concurrency", "1", "--retries", "0", "--server-command", SMALL]
    monkeypatch.setenv("DIE_AFTER", "4")
    with pytest.raises(ServerFailed, match="ended while it was used .exit code 9.*same command resumes"):
        run([*command, "--out", str(tmp_path)])
    file = folder_of(tmp_path, "small") / "builtin-toxic" / "generations.jsonl"
    kept = read_jsonl(file)
    assert len(kept) == 4
    monkeypatch.setenv("DIE_AFTER", "2")  # enough for the other two, on another port
    run([*command, "--out", str(tmp_path)])
    assert len(read_jsonl(file)) == 6 and all(row in read_jsonl(file) for row in kept)


def test_the_command_of_vllm(model, tmp_path, monkeypatch):
    """A program in place of vLLM, with its options."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nword, model, *options = sys.argv[1:]\nassert word == 'serve'\n"
        "print(json.dumps(dict(zip(options[::2], options[1::2]))), flush=True)\n"
        f"os.execv(sys.executable, [sys.executable, {str(SCRIPT)!r}, model, *options[:4]])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    run([f"fast={model}", *SETTINGS, "--engine", "vllm", "--out", str(tmp_path)])
    home = folder_of(tmp_path, "fast")
    options = json.loads((home / "server.log").read_text().splitlines()[0])
    rows = read_jsonl(home / "builtin-toxic" / "generations.jsonl")
    longest = max(len(row["prompt"]) for row in rows)
    assert options["--host"] == "127.0.0.1" and options["--dtype"] == "float32"
    assert (options["--tensor-parallel-size"], options["--data-parallel-size"]) == ("1", "1")
    assert longest + 8 < int(options["--max-model-len"]) < longest + 80  # with the template, and the answer
    assert len(rows) == 6


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--engine", "vllm"], "vllm was not found"),
        (["--server-command", "no-such-program {model} {host} {port}"], "no-such-program was not found"),
        (["--server-command", f"{SMALL} --no-such-option"], "unrecognized arguments: --no-such-option"),
        (["--server-command", "vllm serve {model}"], "lacks {host}, {port}"),
        (["--server-command", SMALL, "--engine", "vllm"], "leave one of them out"),
    ],
)
def test_wrong_servers(model, tmp_path, options, problem):
    with pytest.raises(UserError, match=problem):
        run([f"small={model}", *SETTINGS, *options, "--out", str(tmp_path)])


def test_a_server_is_not_for_endpoints(tmp_path):
    with pytest.raises(UserError, match="these are endpoints"):
        run(["http://localhost/v1#m", *SETTINGS, "--engine", "vllm", "--out", str(tmp_path)])


@pytest.mark.parametrize("variables", [None, pytest.param({"enable_thinking": False}, marks=pytest.mark.slow)])
def test_transformers_serve_answers_like_local_generation(model, tmp_path, variables):
    settings = [*SETTINGS, "--out", str(tmp_path)]
    settings += ["--chat-template-kwargs", json.dumps(variables)] if variables else []
    run([f"local={model}", *settings])
    run([f"served={model}", *settings, "--server-command", TRANSFORMERS])
    files = [folder_of(tmp_path, name) / "builtin-toxic" / "generations.jsonl" for name in ("local", "served")]
    local, served = map(read_jsonl, files)
    for ours, theirs in zip(local, served, strict=True):
        assert theirs["completion"] == ours["completion"] and theirs["finish"] == ours["finish"]
        assert theirs["template_hash"] == ours["template_hash"] and theirs["settings_hash"] != ours["settings_hash"]
    assert all(row["completion"].startswith("<think>") == (variables is None) for row in served)


@pytest.mark.slow
def test_one_of_two_ranks_starts_the_server(model, tmp_path):
    arguments = ["evaluate", f"two={model}", *SETTINGS, "--server-command", SMALL, "--out", str(tmp_path)]
    done = subprocess.run(
        [*torchrun(2), "-m", "dcr_ds", *arguments],
        cwd=ROOT, env=one_thread_environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("server: ready") == 1
    assert len(read_jsonl(folder_of(tmp_path, "two") / "builtin-toxic" / "generations.jsonl")) == 6
    monkey = {**one_thread_environment(), "DIE_AFTER": "1"}
    failed = subprocess.run(
        [*torchrun(2), "-m", "dcr_ds", *arguments[:-1], str(tmp_path / "failed"), "--retries", "0"],
        cwd=ROOT, env=monkey, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert failed.returncode == 1 and failed.stderr.count("ended while it was used") == 1
