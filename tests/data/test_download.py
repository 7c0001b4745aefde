"""Data of URLs: fetched once per node, kept by content, retried, pinned by hash, and without secrets in messages."""

import hashlib
import json
import multiprocessing
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dcr_ds.data import download, read_prompts
from dcr_ds.data.sources import read_table
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource, dump_recipe, load_recipe
from dcr_ds.recipe.urls import expand_variables, mask_secrets
from dcr_ds.run.folder import prepare_folder, save_run

ROWS = b'{"prompt": "one"}\n{"prompt": "two"}\n'
SHA256 = hashlib.sha256(ROWS).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `answers` (status, headers, content), then always with the last one."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests, self.headers = [(200, {}, ROWS)], [], []
        self.url = f"http://127.0.0.1:{self.server_port}/p.jsonl"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        self.server.headers.append(self.headers)
        number = min(len(self.server.requests), len(self.server.answers)) - 1
        status, headers, content = self.server.answers[number]
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def read(source, **fields):
    return read_prompts(DataSource(source=source, **fields), "toxic")


def read_in_child(url, results):
    results.put(len(read(url).rows))


def test_a_url_is_fetched_once_and_read_again_without_the_network(server, own_cache):
    first = read(server.url)
    server.answers = [(500, {}, b"")]
    assert read(server.url) == first and len(server.requests) == 1
    assert first.version == f"sha256:{SHA256}" and (own_cache / "downloads" / SHA256).read_bytes() == ROWS


def test_later_runs_ask_whether_the_file_has_changed(server, monkeypatch, capsys):
    monkeypatch.setattr(download, "FRESH_SECONDS", 0.0)
    server.answers = [(200, {"ETag": '"1"'}, ROWS), (304, {}, b""), (404, {}, b""), (200, {}, b'{"prompt": "new"}')]
    first = read(server.url)
    assert read(server.url) == first and server.headers[-1]["If-None-Match"] == '"1"'
    assert read(server.url) == first and "The copy of 2" in capsys.readouterr().err
    assert [row.prompt for row in read(server.url).rows] == ["new"]
    server.answers, requests = [(500, {}, b"")], len(server.requests)
    assert read(server.url, sha256=SHA256) == first and len(server.requests) == requests


def test_ranks_wait_for_the_first_one(server):
    server.answers = [(200, {}, ROWS)]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=read_in_child, args=(server.url, results)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    assert [results.get(timeout=30) for _ in ranks] == [2] * 4
    for rank in ranks:
        rank.join()
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 503, 500, 408])
def test_temporary_failures_are_retried(server, status):
    server.answers = [(status, {"Retry-After": "0"}, b""), (status, {}, b""), (200, {}, ROWS)]
    assert len(read(server.url).rows) == 2 and len(server.requests) == 3


def test_retry_after_is_respected(server):
    server.answers = [(429, {"Retry-After": "1"}, b""), (200, {}, ROWS)]
    start = time.monotonic()
    read(server.url)
    assert time.monotonic() - start >= 1
    assert download._wait_seconds(0, 10_000.0) == download.LONGEST_WAIT_SECONDS


def test_a_download_that_is_cut_off_is_retried(server):
    server.answers = [(200, {"Content-Length": str(len(ROWS) + 9)}, ROWS), (200, {}, ROWS)]
    assert len(read(server.url).rows) == 2 and len(server.requests) == 2


def test_permanent_failures_end_with_a_single_message(server, error_of):
    server.answers = [(429, {}, b"")]
    assert "the server responded 429" in error_of(read, server.url)
    assert len(server.requests) == download.ATTEMPTS
    server.requests.clear()
    server.answers = [(404, {}, b"")]
    assert "the server responded 404" in error_of(read, server.url) and len(server.requests) == 1


def test_a_pinned_hash_is_checked_and_found_in_the_cache(server, error_of):
    other = "0" * 64
    assert SHA256 in error_of(lambda: read(server.url, sha256=other))
    assert read(server.url, sha256=SHA256).rows
    requests = len(server.requests)
    assert read(server.url.replace("p.jsonl", "another.jsonl"), sha256=SHA256).rows
    assert len(server.requests) == requests


def test_a_pinned_hash_of_a_file(write, error_of):
    path = write("p.jsonl", ROWS)
    assert read(path, sha256=SHA256).version == f"sha256:{SHA256}"
    assert "sha256 in the recipe" in error_of(lambda: read(path, sha256="1" * 64))
    assert "applies to files and URLs" in error_of(lambda: read("builtin", sha256=SHA256))


def test_content_that_cannot_be_read_is_fetched_again(server, error_of):
    server.answers = [(200, {}, b'{"prompt": '), (200, {}, b"<html></html>"), (200, {}, ROWS)]
    assert "not valid JSON" in error_of(read, server.url)
    assert "is a web page" in error_of(read, server.url)
    assert read(server.url).rows


def test_a_damaged_copy_is_fetched_again(server, own_cache):
    read(server.url)
    (own_cache / "downloads" / SHA256).write_bytes(b"torn")
    assert len(read(server.url).rows) == 2 and len(server.requests) == 2


def test_a_cache_folder_that_cannot_be_written_is_named(server, own_cache, monkeypatch, error_of):
    (own_cache / "file").write_text("")
    monkeypatch.setenv("DCR_DS_CACHE", str(own_cache / "file"))
    assert "set DCR_DS_CACHE" in error_of(read, server.url)


def test_a_variable_is_expanded_for_the_request_alone(server, monkeypatch, tmp_path, error_of):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    url = server.url + "?token=${SECRET_TOKEN}"
    source = read(url).source
    assert server.requests[-1].endswith("?token=hunter2") and "hunter2" not in source
    recipe = load_recipe(None, [("data.toxic", url), ("output", str(tmp_path))])
    assert "${SECRET_TOKEN}" in dump_recipe(recipe) and "hunter2" not in dump_recipe(recipe)
    monkeypatch.delenv("SECRET_TOKEN")
    assert "SECRET_TOKEN is not set" in error_of(read, url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/p.csv?token=hunter2&download=true", "https://h/p.csv?token=***&download=true"),
        ("https://me:hunter2@h:1/p.csv", "https://me:***@h:1/p.csv"),
        ("https://hunter2@h/p.csv", "https://***@h/p.csv"),
        ("https://h/p.csv?X-Amz-Signature=hunter2#part", "https://h/p.csv?X-Amz-Signature=***#part"),
        ("https://h/p.csv?se=" + "a1" * 20, "https://h/p.csv?se=***"),
        ("https://h/p.csv?token=${NAME}&raw=1", "https://h/p.csv?token=${NAME}&raw=1"),
        ("https://h/p.csv", "https://h/p.csv"),
        ("see https://me:hunter2@h/p, or not", "see https://me:***@h/p, or not"),
    ],
)
def test_secrets_are_masked(url, shown):
    assert mask_secrets(url) == shown and mask_secrets(shown) == shown


def test_run_files_contain_no_secret_and_the_same_recipe_resumes(tmp_path, error_of):
    url = "https://example.org/p.csv?token=hunter2"
    recipe = load_recipe(None, [("data.toxic", url), ("output", str(tmp_path))])
    folder = prepare_folder(recipe, None).folder
    save_run(recipe, {"data": {}, "notes": [], "overlaps": []})
    (folder / "refine" / "checkpoints").mkdir(parents=True)
    assert all(b"hunter2" not in file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert prepare_folder(recipe, None) == recipe
    saved = load_recipe(str(folder / "recipe.yaml"))
    assert saved.data.toxic.source == "https://example.org/p.csv?token=***"
    assert "has lost its secret" in error_of(read_table, saved.data.toxic, "toxic", "data.toxic")
    assert "hunter2" not in error_of(load_recipe, None, [("refine.layer", url)])


def test_secrets_are_not_sent_unencrypted_to_public_hosts(error_of):
    assert "use https" in error_of(read, "http://example.org/p.csv?token=hunter2")
    with pytest.raises(UserError, match="NOT_SET is not set"):
        expand_variables("${NOT_SET}", "data.toxic")


def test_versions_are_recorded(server):
    from dcr_ds.data.load import RunData

    described = RunData(toxic=read(server.url)).summary()["sets"]["data.toxic"]
    assert described["version"] == f"sha256:{SHA256}" and json.dumps(described)
