"""Files that unpack to far more than their size are errors, in bounded time and memory."""

import gzip
import resource
import time

import pyarrow
import pyarrow.parquet
import pytest

from dcr_ds.data import formats, read_prompts
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource


def refused(path):
    start, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        read_prompts(DataSource(source=str(path)), "toxic")
    assert time.monotonic() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 19  # KiB
    return str(caught.value)


def test_a_gzip_bomb_is_not_unpacked_to_its_end(tmp_path):
    part = gzip.compress(b"\0" * (1 << 24))
    (tmp_path / "p.jsonl.gz").write_bytes(part * 128)  # 2 GiB
    assert "unpacks from" in refused(tmp_path / "p.jsonl.gz")


def test_a_parquet_bomb_is_not_unpacked_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_BYTES", 1 << 26)
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000), pyarrow.array(["x" * 10_000]))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), tmp_path / "p.parquet")
    assert "unpacks to more than" in refused(tmp_path / "p.parquet")


def test_well_compressible_text_is_read(tmp_path):
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(b"prompt\n" + b"a prompt\n" * 100_000 + b"another\n"))
    assert len(read_prompts(DataSource(source=str(tmp_path / "p.csv.gz")), "toxic").rows) == 2
