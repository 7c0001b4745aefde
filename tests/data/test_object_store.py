"""Data on object stores: read through fsspec, fetched once, without secrets in messages; no run is written there."""

import importlib.util

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from small_runs import the_error, write_recipe

from dcr_ds.cli import main
from dcr_ds.data import read_prompts
from dcr_ds.data.object_store import VERSION, fetch_object
from dcr_ds.data.tables import Origin
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource, dump_recipe, load_recipe
from dcr_ds.recipe.urls import expand_variables, mask_secrets, refuse_store

ROWS = b'{"prompt": "one"}\n{"prompt": "two"}\n'
URL = "s3://bucket/folder/p.jsonl"


class Bucket(MemoryFileSystem):
    """fsspec's file system in memory, under the scheme of a store."""

    protocol = "s3"
    store, pseudo_dirs, reads = {}, [""], 0
    failure = None

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")

    def cat_file(self, path, start=None, end=None, **kwargs):
        type(self).reads += 1
        if self.failure:
            raise self.failure
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    monkeypatch.setenv("DCR_DS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    known = fsspec.registry.copy()
    fsspec.register_implementation("s3", Bucket, clobber=True)
    Bucket.store, Bucket.reads, Bucket.failure = {}, 0, None
    store = fsspec.filesystem("s3")
    store.pipe_file(URL, ROWS)
    yield store
    fsspec.register_implementation("s3", known.get("s3") or "s3fs.S3FileSystem", clobber=True)


def read(source=URL, **fields):
    return read_prompts(DataSource(source=source, **fields), "toxic")


def test_an_object_is_read_once_per_node(bucket):
    rows = read()
    assert [row.prompt for row in rows.rows] == ["one", "two"] and rows.source == URL
    assert read().sha256 == rows.sha256 and Bucket.reads == 1


def test_an_object_is_read_again_if_it_has_changed(bucket):
    origin = Origin("data.toxic", URL, "p")
    first = fetch_object(URL, origin, {})
    assert first.content == ROWS and set(first.validators) == {VERSION}
    assert fetch_object(URL, origin, first.validators).content is None and Bucket.reads == 1
    bucket.rm(URL)
    bucket.pipe_file(URL, ROWS + ROWS)
    assert fetch_object(URL, origin, first.validators).content == ROWS + ROWS


def test_the_hash_pins_an_object(bucket):
    with pytest.raises(UserError, match=f"{URL}: has the SHA-256"):
        read(sha256="0" * 64)


def test_a_missing_object_and_a_store_that_fails_are_named(bucket):
    with pytest.raises(UserError, match="data.toxic: s3://bucket/none.jsonl: no such object"):
        read("s3://bucket/none.jsonl")
    Bucket.failure = RuntimeError("Unable to locate credentials for s3://me:hidden@bucket/x")
    with pytest.raises(UserError, match="Unable to locate credentials") as error:
        read()
    assert "hidden" not in str(error.value)


def test_a_missing_package_is_named(bucket, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gcsfs"):
        read("gs://bucket/p.jsonl")


def test_secrets_in_urls_of_stores_are_masked():
    recipe = load_recipe(None, [("data.toxic.source", "s3://name:hidden@bucket/p.jsonl?token=hidden")])
    text = dump_recipe(recipe)
    assert "hidden" not in text and "s3://name:***@bucket/p.jsonl?token=***" in text
    with pytest.raises(UserError, match="has lost its secret"):
        expand_variables("s3://name:***@bucket/p.jsonl", "data.toxic")
    container = "abfs://container@account.dfs.core.windows.net/p.jsonl"
    assert mask_secrets(container) == container


@pytest.mark.parametrize("folder", ["s3://bucket/runs", "gs://bucket", "S3:/bucket"])
def test_a_run_is_not_written_to_an_object_store(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, tmp_path)
    assert main(["train", str(recipe), "--output", folder]) == 2
    message = the_error(capsys.readouterr().err)
    assert message.startswith(f"output: {folder} is on an object store") and "copy" in message
    assert main(["train", str(recipe), "--output", folder, "--dry-run"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []


def test_a_run_is_not_written_to_a_folder_named_like_a_url():
    with pytest.raises(UserError, match="is a URL"):
        refuse_store("memory://runs", "output")


def test_folders_with_a_colon_are_local():
    refuse_store("runs:/x", "output")
    refuse_store("./s3:/x", "output")
