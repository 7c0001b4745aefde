"""Servers that an evaluation starts: ready, failing, killed, and ended with everything that they started."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import TEMPLATE, make_model
from transformers import AutoTokenizer

from dcr_ds.errors import ServerFailed, UserError
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.evaluate.serving import server as module
from dcr_ds.evaluate.serving.answers import write_served_folder
from dcr_ds.evaluate.serving.command import check_engine, describe_engine, parallel_sizes
from dcr_ds.evaluate.serving.server import Server
from dcr_ds.recipe import ChatTemplate
from dcr_ds.recipe.engines import VLLM, checked_engine, fill, server_words
from dcr_ds.recipe.layout import ModelFolder

SCRIPT = Path(__file__).parent / "small_server.py"


@pytest.fixture(autouse=True)
def poll_often(monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)


def server(tmp_path, *options, minutes=1.0) -> Server:
    words = [sys.executable, str(SCRIPT), str(tmp_path / "model"), "--host", "{host}", "--port", "{port}", *options]
    return Server(words, tmp_path / "model", tmp_path / "home" / "server.log", minutes)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids, seconds=5.0) -> None:
    """A process that was killed may need a moment to end."""
    pids, deadline = list(pids), time.monotonic() + seconds
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, pids
        time.sleep(0.02)


def test_a_server_and_its_children_end_with_the_evaluation(tmp_path, capsys):
    file = tmp_path / "pids"
    with server(tmp_path, "--child", str(file)) as running:
        assert running.url.startswith("http://127.0.0.1:")
        pids = [int(word) for word in file.read_text().split()]
        assert len(pids) == 2 and all(map(is_alive, pids))
    wait_until_gone(pids)
    printed = capsys.readouterr().err
    assert "ready after" in printed and str(tmp_path / "home" / "server.log") in printed


def test_a_server_ends_with_an_exception_of_the_evaluation(tmp_path):
    file = tmp_path / "pids"
    with pytest.raises(KeyboardInterrupt), server(tmp_path, "--child", str(file)):
        raise KeyboardInterrupt
    wait_until_gone(map(int, file.read_text().split()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_when_the_evaluation_is_killed(tmp_path, number):
    file = tmp_path / "pids"
    code = (
        "import sys, time; from pathlib import Path; from dcr_ds.evaluate.serving.server import Server\n"
        f"words = [sys.executable, {str(SCRIPT)!r}, 'm', '--host', '{{host}}', '--port', '{{port}}', '--child', "
        f"{str(file)!r}]\nwith Server(words, Path('m'), Path({str(tmp_path / 'log')!r}), 1): print('ready', flush=True)"
        "; time.sleep(1000)"
    )
    evaluation = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert evaluation.stdout.readline() == b"ready\n"
    pids = [int(word) for word in file.read_text().split()]
    evaluation.send_signal(number)
    evaluation.wait(10)
    wait_until_gone(pids)


def test_a_server_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    guard = tmp_path / "guard.py"
    guard.write_text(module.GUARD.read_text().replace("GRACE_SECONDS = 10.0", "GRACE_SECONDS = 0.3"))
    monkeypatch.setattr(module, "GUARD", guard)
    file = tmp_path / "pids"
    with server(tmp_path, "--child", str(file), "--deaf"):
        pass
    wait_until_gone(map(int, file.read_text().split()))


def test_a_server_that_cannot_start_is_an_error_of_the_user_with_its_log(tmp_path):
    with pytest.raises(UserError, match="ended before it was ready .exit code 1.") as error, server(tmp_path, "--fail"):
        pass
    text = str(error.value)
    assert "ValueError: unknown architecture" in text and "frame 49" in text and "frame 3\n" not in text
    assert "server.log" in text


@pytest.mark.parametrize(
    ("option", "problem"), [("--killed", "signal 9"), ("--never", r"not ready after 0\.01 minutes.*server_minutes")]
)
def test_a_server_that_is_killed_or_hangs_is_an_error(tmp_path, option, problem):
    file = tmp_path / "pids"
    running = server(tmp_path, option, "--child", str(file), minutes=0.01 if option == "--never" else 1)
    with pytest.raises(ServerFailed, match=problem), running:
        pass
    wait_until_gone(map(int, file.read_text().split()))


def test_a_server_of_another_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OTHER_MODEL_SECONDS", 0.1)
    with pytest.raises(UserError, match="serves 'other'"), server(tmp_path, "--name", "other"):
        pass


def test_a_port_that_is_taken_meanwhile_is_changed(tmp_path, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = [other.getsockname()[1], module.free_port()]
        monkeypatch.setattr(module, "free_port", lambda: ports.pop(0))
        monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
        with server(tmp_path) as running:
            assert not ports and running.url


def test_ranks_do_not_leak_into_the_server(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "7")
    file = tmp_path / "pids"
    with server(tmp_path, "--child", str(file)):
        _, pid = file.read_text().split()
        names = {word.split(b"=")[0] for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
    assert not names & {b"RANK", b"LOCAL_RANK", b"WORLD_SIZE", b"MASTER_PORT", b"TORCHELASTIC_RUN_ID"}
    assert b"PATH" in names and os.environ["RANK"] == "7"


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ("vlm", "is not transformers or vllm"),
        ("serve {model}", "lacks {host}, {port}"),
        ("serve {model} --host {host} --port {prot}", "did you mean {port}"),
        ("serve '{model}", "cannot be split"),
    ],
)
def test_commands_that_cannot_be_used(engine, problem):
    with pytest.raises(ValueError, match=problem):
        checked_engine(engine)


def test_commands_are_filled_without_touching_other_braces():
    words = server_words("serve {model} '--kwargs={\"a\": {}}' --host {host} --port {port}")
    assert fill(words, {"model": "/a b", "host": "h"}) == [
        "serve", "/a b", '--kwargs={"a": {}}', "--host", "h", "--port", "{port}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gpus", "heads", "kv_heads", "sizes"),
    [
        (0, 9, 3, (1, 1)),
        (1, 32, 8, (1, 1)),
        (8, 32, 8, (8, 1)),
        (8, 28, 4, (4, 2)),
        (8, 9, 3, (1, 8)),
        (6, 24, 8, (2, 3)),
        (4, 14, 2, (2, 2)),
        (8, 64, 4, (8, 1)),
    ],
)
def test_parallel_sizes(gpus, heads, kv_heads, sizes):
    assert parallel_sizes(gpus, {"num_attention_heads": heads, "num_key_value_heads": kv_heads}) == sizes


def test_an_engine_that_is_not_installed():
    with pytest.raises(UserError, match="vllm was not found; pip install vllm"):
        check_engine(VLLM)
    check_engine(f"{sys.executable} x.py {{model}} {{host}} {{port}}")


def test_a_dry_run_describes_the_server():
    lines = describe_engine(VLLM, 8, {"num_attention_heads": 28, "num_key_value_heads": 4})
    assert "--tensor-parallel-size 4 --data-parallel-size 2" in lines[0] and "the other ranks wait" in lines[1]
    assert describe_engine("transformers", 8, {}) == []


def test_the_served_folder_has_template_and_stop_tokens_of_local_generation(tmp_path):
    source = make_model(tmp_path / "source")
    config = source / "tokenizer_config.json"
    template = TEMPLATE + "{{ strftime_now('%Y') }}{{ thinking }}"
    (source / "chat_template.jinja").unlink()
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    (source / "generation_config.json").write_text(json.dumps({"repetition_penalty": 3.0, "eos_token_id": 7}))
    chosen = ChatTemplate(None, {"thinking": "quickly"})
    model = EvaluatedModel("m", ModelFolder(tmp_path), source, torch.float32, "sdpa", chosen)
    write_served_folder(model, folder := tmp_path / "served")
    assert (folder / "model.safetensors").is_symlink()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"do_sample": False, "bos_token_id": 1, "pad_token_id": 0, "eos_token_id": [2]}
    served = AutoTokenizer.from_pretrained(folder)
    text = served.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n2024quickly"
