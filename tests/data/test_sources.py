"""URLs and hub ids: downloads, and errors when they fail."""

import os
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pytest

from dcr_ds.data import read_conversations, read_prompts
from dcr_ds.recipe import DataSource


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    """The address of a server that serves the folder of the test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def read(source, **fields):
    return read_prompts(DataSource(source=source, **fields), "toxic")


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl.gz", "p.json", "p.parquet"])
def test_url(write, address, name):
    write(name, [{"prompt": "one"}, {"prompt": "two"}])
    prompt_set = read(f"{address}/{name}")
    assert [(row.id, row.prompt) for row in prompt_set.rows] == [("p-1", "one"), ("p-2", "two")]


def test_secrets_in_a_url_are_not_recorded_or_printed(write, address, error_of):
    write("p.csv", [{"prompt": "one"}])
    write("q.csv", "text\none\n")
    assert read(f"{address}/p.csv?token=secret").source == f"{address}/p.csv"
    assert "secret" not in error_of(read, f"{address}/q.csv?token=secret")
    assert "secret" not in error_of(read, f"{address}/none.csv?token=secret")
    assert "secret" not in error_of(read, "http://user:secret@127.0.0.1:1/p.csv")


def test_url_errors(write, address, error_of):
    write("page.csv", "<!DOCTYPE html><html></html>")
    assert "the server responded 404" in error_of(read, f"{address}/none.csv")
    assert "is a web page" in error_of(read, f"{address}/page.csv")
    assert "unknown file format" in error_of(read, f"{address}/page.html")
    assert "could not be downloaded" in error_of(read, "http://127.0.0.1:1/p.csv")
    assert "could not be downloaded" in error_of(read, "http://127.0.0.1:port/p.csv")
    assert "split 'test' applies to hub data sets" in error_of(lambda: read(f"{address}/p.csv", split="test"))


def test_hub_rows_are_read_like_rows_of_a_file(monkeypatch):
    requests = {}

    def load_dataset(path, subset, **arguments):
        requests.update(arguments, path=path, subset=subset)
        return datasets.Dataset.from_list([{"goal": "one", "kind": 1}, {"goal": "two", "kind": 2}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    prompt_set = read("owner/set", subset="hard", revision="v1", columns={"prompt": "goal"}, where={"kind": "2"})
    assert requests == {"path": "owner/set", "subset": "hard", "split": "train", "revision": "v1"}
    assert prompt_set.source == "owner/set (train, revision v1)"
    assert [(row.id, row.prompt) for row in prompt_set.rows] == [("set-2", "two")]


def test_the_subsets_of_a_hub_set_are_named_where_none_is_chosen(error_of, tmp_path, monkeypatch):
    configs = "\n".join(f"- config_name: {name}\n  data_files: {name}.jsonl" for name in ("safe", "unsafe"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    for name in ("safe", "unsafe"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a"}\n')
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda _, subset, **rest: load(str(tmp_path), subset, **rest))
    message = error_of(read, "owner/set")
    assert "Config name is missing" in message and "['safe', 'unsafe']" in message and "subset" in message


def test_hub_conversations(monkeypatch):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = datasets.Dataset.from_list([{"messages": messages}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert read_conversations(DataSource(source="owner/set"), "general").rows[0].response == "a"


def test_a_path_in_an_existing_folder_is_not_a_hub_id(error_of, tmp_path, monkeypatch):
    (tmp_path / "prompts").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    assert "no such file" in error_of(read, "prompts/toxic")
    assert "no such file" in error_of(read, "nowhere/toxic.jsonl")
    assert "no such file" in error_of(read, "toxic")


HUB_SCRIPT = """
import sys
from dcr_ds.data import read_prompts
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource
try:
    read_prompts(DataSource(source="nobody/no-such-set"), "toxic")
except UserError as error:
    print(error)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


def test_hub_without_network_is_a_quick_user_error(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    start = time.monotonic()
    command = [sys.executable, "-c", HUB_SCRIPT]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    message, heavy = result.stdout.strip().splitlines()
    assert message.startswith("data.toxic: nobody/no-such-set (train): not a local file, and could not be downloaded")
    assert "HF_HUB_OFFLINE" in message and "--data.toxic.source prompts.jsonl" in message
    assert heavy == "[]"
    assert time.monotonic() - start < 30


def test_importing_data_imports_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "pyarrow", "numpy")
    script = f"import sys, dcr_ds.data; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]"
