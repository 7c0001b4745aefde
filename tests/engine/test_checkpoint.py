"""Checkpoints are atomic: training resumes bit for bit, and damaged checkpoints are never loaded."""

import hashlib
import json
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_engine import load_newest, make_engine, save_checkpoint, train, trained_weights

from dcr_ds.engine.checkpoint.checkpoints import Checkpoints, remove_checkpoints
from dcr_ds.engine.checkpoint.manifest import MANIFEST, Saved, seal
from dcr_ds.errors import UserError


@pytest.fixture(scope="module")
def engine(ranks):
    return make_engine(ranks, 0, seed=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, ranks, engine):
    """Checkpoints of the steps 1, 2 and 3, and the weights at each."""
    folder = tmp_path_factory.mktemp("saved")
    weights = {}
    for step in (1, 2, 3):
        train(engine, [step])
        save_checkpoint(engine, folder, step, {"tokens": step * 100, "gap": 0.1 + 0.2}, keep=3, ranks=ranks)
        weights[step] = trained_weights(engine, ranks)
    return folder, weights


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the three checkpoints that a test may damage."""
    return shutil.copytree(saved[0], tmp_path / "checkpoints")


def newest_files(folder):
    return sorted(file for file in (folder / "step-00000003").rglob("*") if file.is_file())


def assert_falls_back(engine, folder, ranks, saved, capsys, step=2):
    loaded, state = load_newest(engine, folder, ranks)
    assert (loaded, state["tokens"]) == (step, step * 100)
    weights = trained_weights(engine, ranks)
    assert all(torch.equal(weights[name], saved[1][step][name]) for name in weights)
    log = capsys.readouterr().err
    assert log.count("looking for an older one") == 3 - step
    assert f"resuming from {folder / f'step-{step:08d}'}" in log


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_steps_after_a_resume_are_those_of_the_uninterrupted_run(tmp_path, ranks, zero):
    engine = make_engine(ranks, zero, seed=0)
    train(engine, range(3))
    save_checkpoint(engine, tmp_path, 3, {"tokens": 30}, keep=1, ranks=ranks)
    train(engine, range(3, 6))
    expected = trained_weights(engine, ranks)

    resumed = make_engine(ranks, zero, seed=1)
    assert any(not torch.equal(weight, expected[name]) for name, weight in trained_weights(resumed, ranks).items())
    assert load_newest(resumed, tmp_path, ranks) == (3, {"tokens": 30})
    train(resumed, range(3, 6))
    weights = trained_weights(resumed, ranks)
    assert weights.keys() == expected.keys() == {"2.weight", "2.bias", "4.weight", "4.bias"}
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert resumed.get_lr() == engine.get_lr()


@pytest.mark.parametrize(("saved_under", "loaded_under"), [(1, 2), (2, 1)])
def test_checkpoint_of_another_zero_stage_is_converted(tmp_path, ranks, capsys, saved_under, loaded_under):
    """ZeRO 1 and 2 on one rank; tests/distributed converts from 2 ranks to 1 under ZeRO 3."""
    engine = make_engine(ranks, saved_under, seed=0)
    train(engine, range(3))
    save_checkpoint(engine, tmp_path, 3, {"tokens": 30}, keep=1, ranks=ranks)
    train(engine, range(3, 6))
    expected = trained_weights(engine, ranks)

    resumed = make_engine(ranks, loaded_under, seed=1)
    assert load_newest(resumed, tmp_path, ranks) == (3, {"tokens": 30})
    assert "converting it for 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("*universal*"))
    train(resumed, range(3, 6))
    weights = trained_weights(resumed, ranks)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert resumed.get_lr() == engine.get_lr()


def test_saving_does_not_change_training(tmp_path, ranks):
    plain, saving = make_engine(ranks, 2, seed=0), make_engine(ranks, 2, seed=0)
    for step in range(3):
        train(plain, [step])
        train(saving, [step])
        save_checkpoint(saving, tmp_path, step + 1, {}, keep=1, ranks=ranks)
    expected, weights = trained_weights(plain, ranks), trained_weights(saving, ranks)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_newest_is_loaded_with_its_state(saved, engine, ranks):
    assert load_newest(engine, saved[0], ranks) == (3, {"tokens": 300, "gap": 0.1 + 0.2})
    assert (saved[0] / "latest").read_text() == "step-00000003"


def test_without_checkpoints_training_starts_from_scratch(tmp_path, engine, ranks):
    assert load_newest(engine, tmp_path / "never", ranks) is None


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "longer", "missing"])
def test_damaged_file_falls_back_to_an_older_checkpoint(saved, folder, engine, ranks, capsys, damage):
    files = [file for file in newest_files(folder) if file.name != MANIFEST]
    assert files
    for seed, file in enumerate(files):
        content = file.read_bytes()
        generator = random.Random(seed)
        if damage == "bit":
            damaged = bytearray(content)
            damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            file.write_bytes(damaged)
        elif damage == "missing":
            file.unlink()
        else:
            cut = content[: generator.randrange(len(content))]
            file.write_bytes({"cut": cut, "empty": b"", "longer": content + b"\0"}[damage])
        assert_falls_back(engine, folder, ranks, saved, capsys)
        file.write_bytes(content)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
def test_damaged_manifest_falls_back_to_an_older_checkpoint(saved, folder, engine, ranks, capsys, damage):
    manifest = folder / "step-00000003" / MANIFEST
    text = manifest.read_text()
    manifest.write_text({"cut": text[: len(text) // 2], "other": "[]"}.get(damage, ""))
    if damage == "missing":
        manifest.unlink()
    assert_falls_back(engine, folder, ranks, saved, capsys)


def test_two_damaged_checkpoints_are_skipped(saved, folder, engine, ranks, capsys):
    for step in (2, 3):
        (folder / f"step-{step:08d}" / MANIFEST).unlink()
    assert_falls_back(engine, folder, ranks, saved, capsys, step=1)


def test_only_damaged_checkpoints_are_an_error(folder, engine, ranks):
    for manifest in folder.rglob(MANIFEST):
        manifest.unlink()
    with pytest.raises(UserError, match=f"{folder}: no complete checkpoint is left; remove the folder"):
        load_newest(engine, folder, ranks)


def test_interrupted_save_is_skipped(saved, folder, engine, ranks, capsys):
    (folder / "step-00000003").rename(folder / "step-00000003.partial")
    assert load_newest(engine, folder, ranks)[0] == 2
    assert "incomplete" not in capsys.readouterr().err
    # the leftover does not prevent the next save
    save_checkpoint(engine, folder, 3, {"tokens": 300}, keep=3, ranks=ranks)
    assert load_newest(engine, folder, ranks)[0] == 3
    assert not list(folder.glob("*.partial"))


def test_the_file_latest_does_not_decide_what_is_loaded(saved, folder, engine, ranks):
    (folder / "latest").write_text("step-00000001")
    assert load_newest(engine, folder, ranks)[0] == 3


def test_a_changed_manifest_is_detected(saved, folder, engine, ranks, capsys):
    manifest = folder / "step-00000003" / MANIFEST
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(values | {"state": {"tokens": 301}}))
    assert_falls_back(engine, folder, ranks, saved, capsys)


def test_checkpoint_that_cannot_be_converted_is_an_error(folder, engine, ranks):
    """The checkpoint was saved under ZeRO-3 and this run has ZeRO-0."""
    newest = folder / "step-00000003"
    (newest / MANIFEST).unlink()
    for rank in range(4):
        for kind in ("model", "optim"):
            (newest / f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt").write_bytes(b"shard")
    seal(newest, Saved(3, world_size=4, zero_stage=3, state={}, started=0.0, parameters=""))
    with pytest.raises(UserError, match="saved under ZeRO stage 3, which stage 0 cannot load; use a --deepspeed of"):
        load_newest(engine, folder, ranks)


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_checkpoints_are_kept(tmp_path, engine, ranks, keep):
    for step in (5, 10, 15, 20):
        save_checkpoint(engine, tmp_path, step, {}, keep, ranks)
        assert (tmp_path / "latest").read_text() == f"step-{step:08d}"
    kept = [f"step-{step:08d}" for step in (5, 10, 15, 20)[-keep:]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", *kept]


def test_rotation_keeps_the_intact_checkpoint_before_a_damaged_one(folder, engine, ranks):
    """Resumed from step 2 as step 3 is damaged, stopped at once, resumed again, with keep: 1."""
    for step in (1, 3):
        (folder / f"step-{step:08d}" / MANIFEST).unlink()
    checkpoints = Checkpoints(engine, folder, 1, ranks)
    assert checkpoints.load_newest()[0] == 2
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    checkpoints.save(2, {"tokens": 200})
    checkpoints.wait_until_saved()
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before  # step 2 exists already
    checkpoints.save(3, {"tokens": 333})
    checkpoints.wait_until_saved()
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000003"]
    assert load_newest(engine, folder, ranks) == (3, {"tokens": 333})


def test_an_older_checkpoint_stays_until_the_next_is_complete(folder, engine, ranks, monkeypatch):
    def failing(*arguments):
        raise OSError(28, "No space left on device", str(folder))

    checkpoints = Checkpoints(engine, folder, 1, ranks)
    checkpoints.load_newest()
    monkeypatch.setattr("dcr_ds.engine.checkpoint.checkpoints.seal", failing)
    checkpoints.save(4, {})  # continues; the thread fails
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(5, {})
    assert load_newest(engine, folder, ranks)[0] == 3


def test_full_disk_is_an_error_before_anything_is_written(folder, engine, ranks, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**9, free=1_000))
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match="step-00000004.partial: needs .* GB and the disk has 1e-06 GB left"):
        save_checkpoint(engine, folder, 4, {}, keep=1, ranks=ranks)
    assert sorted(folder.rglob("*")) == before
    assert load_newest(engine, folder, ranks)[0] == 3


def test_frozen_weights_are_not_saved(tmp_path, engine, ranks):
    save_checkpoint(engine, tmp_path, 1, {}, keep=1, ranks=ranks)
    weights = torch.load(next(tmp_path.rglob("*model_states.pt")), weights_only=False)["module"]
    assert weights.keys() == {"2.weight", "2.bias", "4.weight", "4.bias"}


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_checkpoint_without_the_shards_of_a_rank_is_never_finished(tmp_path, ranks, zero):
    """With folders that are local to each node, the save fails and older checkpoints stay."""
    engine = make_engine(ranks, zero, seed=0)
    save_checkpoint(engine, tmp_path, 1, {}, keep=1, ranks=ranks)
    checkpoints = Checkpoints(engine, tmp_path, 1, ranks)
    checkpoints.ranks = replace(ranks, world_size=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="of 1 of 2 ranks are missing .rank 1"):
        patch.setattr("dcr_ds.engine.checkpoint.checkpoints.barrier", lambda ranks: None)
        patch.setattr("dcr_ds.engine.checkpoint.checkpoints.broadcast_from_main", lambda value, ranks: value)
        patch.setattr("dcr_ds.engine.checkpoint.checkpoints.gather_objects", lambda value, ranks: [value])
        checkpoints.save(2, {})
        checkpoints.wait_until_saved()
    assert load_newest(engine, tmp_path, ranks)[0] == 1


def test_a_checkpoint_that_names_too_few_shards_is_incomplete(tmp_path, ranks, capsys):
    """As saved by versions without this check."""
    engine = make_engine(ranks, 3, seed=0)
    for step in (1, 2):
        save_checkpoint(engine, tmp_path, step, {}, keep=2, ranks=ranks)
    manifest = tmp_path / "step-00000002" / MANIFEST
    values = json.loads(manifest.read_text())
    values.pop("sha256")
    values["world_size"] = 2
    sha256 = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps(values | {"sha256": sha256}))
    assert load_newest(engine, tmp_path, ranks)[0] == 1
    assert "the optim shards of 1 of 2 ranks are missing (rank 1)" in capsys.readouterr().err


def test_the_time_of_a_save_is_kept_for_the_next_attempt(tmp_path, ranks, monkeypatch):
    monkeypatch.setattr("dcr_ds.engine.checkpoint.checkpoints.SLOW_DISK", 1e-3)  # bytes per second
    engine = make_engine(ranks, 2, seed=0)
    assert Checkpoints(engine, tmp_path, 1, ranks).expected_seconds > 1000
    save_checkpoint(engine, tmp_path, 1, {}, keep=1, ranks=ranks)
    resumed = Checkpoints(engine, tmp_path, 1, ranks)
    resumed.load_newest()
    assert 0 < resumed.expected_seconds < 100


def test_the_estimated_time_of_a_save_counts_the_nodes_that_write(tmp_path, ranks, monkeypatch):
    """With ZeRO every node writes its part; without it only rank 0 writes."""
    engines = {zero: make_engine(ranks, zero, 0) for zero in (0, 2)}
    on_one_node = {zero: Checkpoints(engine, tmp_path, 1, ranks).expected_seconds for zero, engine in engines.items()}
    gathered = [True, False] * 4
    monkeypatch.setattr("dcr_ds.engine.checkpoint.checkpoints.gather_objects", lambda value, ranks: gathered)
    on_four = {zero: Checkpoints(engine, tmp_path, 1, ranks).expected_seconds for zero, engine in engines.items()}
    assert on_four == {0: on_one_node[0], 2: on_one_node[2] / 4}


def test_checkpoint_of_other_parameters_is_refused(tmp_path, ranks):
    """Another version names its parameters otherwise: DeepSpeed would leave them at their initial values."""
    save_checkpoint(make_engine(ranks, 2, seed=0), tmp_path, 1, {}, keep=1, ranks=ranks)
    other = make_engine(ranks, 2, seed=0)
    other.module.add_module("5", torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="step-00000001: holds other parameters than this version"):
        load_newest(other, tmp_path, ranks)


def test_a_checkpoint_of_other_sub_groups_is_refused(tmp_path, ranks):
    save_checkpoint(make_engine(ranks, 3, seed=0), tmp_path, 1, {}, keep=1, ranks=ranks)
    with pytest.raises(UserError, match="step-00000001: saved with another sub_group_size"):
        load_newest(make_engine(ranks, 3, seed=0, sub_group_size=8), tmp_path, ranks)


def test_manifest_of_a_newer_version_is_read(tmp_path, engine, ranks):
    save_checkpoint(engine, tmp_path, 1, {}, keep=1, ranks=ranks)
    manifest = tmp_path / "step-00000001" / MANIFEST
    values = json.loads(manifest.read_text()) | {"added_later": 1}
    values.pop("sha256")
    sha256 = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps(values | {"sha256": sha256}))
    assert load_newest(engine, tmp_path, ranks)[0] == 1


def test_checkpoints_behind_a_link_are_removed_as_well(tmp_path):
    """A folder on a larger disk: what is not a checkpoint stays, and so does the link."""
    disk, link = tmp_path / "disk", tmp_path / "checkpoints"
    for name in ("step-00000001", "step-00000002.universal", "other"):
        (disk / name).mkdir(parents=True)
    (disk / "latest").write_text("step-00000001")
    link.symlink_to(disk)
    remove_checkpoints(link)
    assert link.is_dir() and [path.name for path in disk.iterdir()] == ["other"]
