"""Trackers get the numbers of metrics.jsonl at the same steps, also after a resume, and never end a run."""

import importlib
import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.metrics import MetricsLog, read_rows
from dcr_ds.engine.trackers import attach_report, check_trackers
from dcr_ds.errors import UserError
from dcr_ds.files import read_object
from dcr_ds.recipe import Recipe, load_recipe
from dcr_ds.recipe.layout import StageFolder

KEY = "0123456789abcdef0123456789abcdef01234567"  # as long as a key of Weights & Biases
RANKS = {rank: Ranks(rank, 2, rank, torch.device("cpu")) for rank in (0, 1)}


@pytest.fixture(autouse=True)
def local(monkeypatch, tmp_path_factory):
    """Trackers that reach no network, and a key that must not be written."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))


def recipe_of(folder, *trackers) -> Recipe:
    return Recipe(name=f"run-{folder.name}", output=str(folder), track=list(trackers))


def train(recipe, steps, first_step=0, rank=0, attempt=0) -> StageFolder:
    """Log steps as an attempt of stage 2 does; a repeated step has other seconds, as in a real resume."""
    folder = StageFolder(recipe.folder / "align")
    folder.folder.mkdir(parents=True, exist_ok=True)
    with MetricsLog("align", folder, first_step, 9, recipe, RANKS[rank]) as log:
        for step in steps:
            values = {"loss": 2.0 / step, "learning_rate": 1e-4, "grad_norm": 0.5, "gap": None, "note": attempt}
            log.write({"step": step, "samples": step * 8, "tokens": step * 80, "step_tokens": 80, **values})
    return folder


def of_tensorboard(folder: StageFolder) -> dict:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def of_wandb(folder: StageFolder) -> dict:
    """The history in the local file, once it is there: another process writes it, and may still do so."""
    last, deadline = read_rows(folder.metrics)[-1]["step"], time.monotonic() + 60
    history = history_of_wandb(folder)
    while history.get("align/loss", [(0, 0)])[-1][0] != last and time.monotonic() < deadline:
        time.sleep(0.1)
        history = history_of_wandb(folder)
    return history


def history_of_wandb(folder: StageFolder) -> dict:
    from wandb.proto import wandb_internal_pb2

    history: dict = {}
    for file in sorted((folder.folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = record.history.step.num
            for name in items.keys() - {"_step", "_runtime", "_timestamp"}:
                history.setdefault(name, []).append((step, items[name]))
    return history


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file of Weights & Biases: LevelDB's log format after a header of seven bytes."""
    at, record, block = 7, b"", 32768
    while at + 7 <= len(content):
        if block - at % block < 7:  # no header fits into the rest of a block
            at += block - at % block
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


def of_trackio(folder: StageFolder) -> dict:
    import trackio

    history: dict = {}
    project = folder.folder.parent.name
    (run,) = trackio.Api().runs(project)
    for row in importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_logs(project, run.name):
        for name in row.keys() - {"step", "timestamp"}:
            history.setdefault(name, []).append((row["step"], row[name]))
    return history


def of_mlflow(folder: StageFolder) -> dict:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(folder.folder.parent / "mlflow").as_uri())
    experiment = client.get_experiment_by_name(folder.folder.parent.name)
    (run,) = client.search_runs([experiment.experiment_id])
    metrics = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(metric.step, metric.value) for metric in metrics[name]] for name in metrics}


READ = {"tensorboard": of_tensorboard, "wandb": of_wandb, "trackio": of_trackio, "mlflow": of_mlflow}


def need(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)


@pytest.mark.parametrize("name", READ)
def test_a_tracker_has_the_numbers_of_the_metrics_also_after_a_resume(name, tmp_path, capfd):
    need(name)
    recipe = recipe_of(tmp_path, name)
    train(recipe, [1, 2, 3, 4, 5])
    first = read_object(StageFolder(recipe.folder / "align").trackers)
    folder = train(recipe, [4, 5, 6], first_step=3, attempt=1)
    rows = read_rows(folder.metrics)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and [row["note"] for row in rows] == [0, 0, 0, 1, 1, 1]
    history = READ[name](folder)
    assert history.keys() == {f"align/{field}" for field in rows[0].keys() - {"gap"}}
    for field, points in history.items():
        of_rows = [(row["step"], row[field.removeprefix("align/")]) for row in rows]
        assert [step for step, _ in points] == [step for step, _ in of_rows]
        assert [value for _, value in points] == pytest.approx([value for _, value in of_rows], rel=1e-6)
    assert read_object(folder.trackers).keys() == first.keys() == {name}
    assert "WARNING" not in capfd.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", READ)
def test_the_report_is_added_to_the_run(name, tmp_path, capfd):
    need(name)
    recipe = recipe_of(tmp_path, name)
    folder = train(recipe, [1, 2])
    for file, text in (
        (recipe.folder / "report" / "report.md", "the report"),
        (folder.model / "README.md", "the card"),
    ):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    attach_report(recipe)
    assert "WARNING" not in capfd.readouterr().err
    assert [step for step, _ in READ[name](folder)["align/loss"]] == [1, 2]
    if name == "mlflow":
        added = {path.name: path.read_text() for path in (recipe.folder / "mlflow").rglob("report/*/*.md")}
        assert added == {"report.md": "the report", "README.md": "the card"}
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        tags = EventAccumulator(str(folder.folder / "tensorboard")).Reload().Tags()["tensors"]
        assert {tag.removesuffix("/text_summary") for tag in tags} == {"report/report.md", "model/README.md"}
    if name == "trackio":
        home = Path(importlib.import_module("trackio").TRACKIO_DIR)
        blobs = [path.read_bytes() for path in home.rglob("blobs/sha256/*/*")]
        assert {b"the report", b"the card"} <= set(blobs)


def test_a_tracker_that_fails_is_one_warning(tmp_path, capfd):
    need("tensorboard")
    recipe = recipe_of(tmp_path, "tensorboard")
    folder = StageFolder(recipe.folder / "align")
    folder.folder.mkdir(parents=True)
    (folder.folder / "tensorboard").write_text("a file where the folder should be")
    train(recipe, [1, 2, 3])
    assert [row["step"] for row in read_rows(folder.metrics)] == [1, 2, 3]
    assert capfd.readouterr().err.count("WARNING: track: tensorboard: ") == 1


def test_a_missing_key_is_one_warning(tmp_path, capfd, monkeypatch):
    need("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    importlib.import_module("wandb").teardown()  # it keeps what it has read of the environment
    recipe = recipe_of(tmp_path, "wandb")
    folder = train(recipe, [1, 2])
    assert len(read_rows(folder.metrics)) == 2
    error = capfd.readouterr().err
    assert error.count("WARNING: track: wandb: no key") == 1 and "continues without it" in error


def test_a_server_that_cannot_be_reached_is_one_warning(tmp_path, capfd, monkeypatch):
    need("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:a-secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = train(recipe_of(tmp_path, "mlflow"), [1, 2])
    assert len(read_rows(folder.metrics)) == 2
    error = capfd.readouterr().err
    assert error.count("WARNING: track: mlflow: ") == 1 and "a-secret" not in error


def test_other_ranks_open_no_tracker(tmp_path):
    folder = train(recipe_of(tmp_path, *READ), [1, 2], rank=1)
    assert not list(folder.folder.iterdir())


@pytest.mark.parametrize("name", READ)
def test_a_missing_package_is_named_before_anything_is_trained(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"track: {name}: the package is missing; pip install 'dcr-ds\["):
        check_trackers(recipe_of(tmp_path, name))


def test_the_field_tensorboard_is_the_tracker(tmp_path):
    need("tensorboard")
    folder = train(Recipe(name="run", output=str(tmp_path), tensorboard=True), [1])
    assert of_tensorboard(folder)["align/loss"] == [(1, 2.0)]


def test_an_unknown_tracker():
    with pytest.raises(UserError, match="track"):
        load_recipe(None, [("track", "[wandbb]")])
