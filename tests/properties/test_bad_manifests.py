"""Any manifest: a checkpoint is accepted only if its manifest describes exactly its files."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import changed, damaged, examples

from dcr_ds.engine.checkpoint.manifest import MANIFEST, Manifest, Saved, seal, verify


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "zero").mkdir()
    (folder / "zero" / "optimizer.pt").write_bytes(b"moments")
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"shard")
    (folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(b"shard")
    seal(folder, Saved(3, 2, 2, {"tokens": 30, "gap": 0.1 + 0.2, "start": None}, started=0.0, parameters=""))
    return folder


@pytest.fixture
def sealed(checkpoint):
    """The sealed folder, restored after each test."""
    text = (checkpoint / MANIFEST).read_bytes()
    yield checkpoint, text
    (checkpoint / MANIFEST).write_bytes(text)


def sealed_again(values):
    """The values with a matching hash."""
    if isinstance(values, dict):
        values.pop("sha256", None)
        values["sha256"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return values


def is_verified_or_refused(folder):
    manifest, fault = verify(folder)
    assert (manifest is None) == bool(fault)
    for name, facts in manifest.files.items() if manifest else ():
        assert (folder / name).read_bytes() and facts.bytes == len((folder / name).read_bytes())
        assert facts.sha256 == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return manifest


@examples(150)
@given(data=st.data())
def test_changed_bytes_are_detected(sealed, data):
    folder, text = sealed
    other = data.draw(damaged(text) | st.binary(max_size=40))
    (folder / MANIFEST).write_bytes(other)
    manifest = is_verified_or_refused(folder)
    assert manifest is None or json.loads(other) == json.loads(text)  # white space may differ


@examples(150)
@given(data=st.data())
def test_changed_values_with_a_matching_hash(sealed, data):
    folder, text = sealed
    values = sealed_again(data.draw(changed(json.loads(text))))
    (folder / MANIFEST).write_text(json.dumps(values))
    manifest = is_verified_or_refused(folder)
    assert manifest is None or isinstance(manifest, Manifest)
