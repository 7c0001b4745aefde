"""Small real files for the tests of the readers."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dcr_ds.errors import UserError


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write rows, text or bytes to a file whose suffix gives the format, and return its path."""

    def write_file(name: str, content: object) -> str:
        path = tmp_path / name
        path.write_bytes(encode(name, content))
        return str(path)

    return write_file


def encode(name: str, content: object) -> bytes:
    name = name.lower()
    if isinstance(content, bytes):
        return content
    if name.endswith(".gz"):
        return gzip.compress(encode(name.removesuffix(".gz"), content))
    if isinstance(content, str):
        return content.encode()
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    if name.endswith(".csv"):
        return _csv(content).encode()
    if name.endswith(".parquet"):
        return _parquet(content)
    return json.dumps(content).encode()


def _csv(rows: list[dict]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _parquet(rows: list[dict]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    schema = None if rows else pyarrow.schema([("prompt", pyarrow.string())])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def error_of() -> Callable[..., str]:
    """The message of the UserError that a call raises."""

    def message(function: Callable, *arguments: object) -> str:
        with pytest.raises(UserError) as caught:
            function(*arguments)
        return str(caught.value)

    return message


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache folder for downloads of its own, and short waits between attempts."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DCR_DS_CACHE", str(folder))
    monkeypatch.setattr("dcr_ds.data.download.FIRST_WAIT_SECONDS", 0.01)
    return folder
