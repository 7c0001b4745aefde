"""A stage resumes where it was stopped, ends before a bad step, and leaves no checkpoint when it is done."""

import json
import math
import os
import signal
import time
from types import SimpleNamespace

import pytest
from small_engine import accumulate, make_engine

from dcr_ds.engine.metrics import read_rows
from dcr_ds.engine.session import Session
from dcr_ds.errors import Diverged, Stopped
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import StageFolder
from dcr_ds.recipe.schema import WatchdogSection

STEPS = 6
RECIPE = Recipe(checkpoint={"every_steps": 2}, align={"global_batch": 6}, log_every=100)


def run(folder, ranks, seed=0, disturb=lambda step, row: None, recipe=RECIPE):
    """Train a small engine; `disturb` is called with each row before the step is taken."""
    engine = make_engine(ranks, 2, seed)
    training = SimpleNamespace(engine=engine, recipe=recipe, ranks=ranks, total_steps=STEPS)
    with Session("align", training, StageFolder(folder), time.monotonic()) as session:
        while session.step < STEPS:
            row = {"loss": accumulate(engine, session.step), "step_tokens": 24, "retain_seconds": 0.5}
            disturb(session.step, row)
            session.take_step(row, [f"sample {session.step}"])
            if session.step % 3 == 0:
                with session.measuring():
                    time.sleep(0.01)
            session.log(row)
            session.save_or_stop(is_last=session.step == STEPS)
    session.finish({"more": True})


def losses(folder):
    return [row["loss"] for row in read_rows(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, ranks):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(folder, ranks)
    return folder


def test_a_finished_stage_leaves_only_metrics_and_a_summary(uninterrupted):
    assert sorted(path.name for path in uninterrupted.iterdir()) == ["metrics.jsonl", "summary.json"]
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert (summary["steps"], summary["samples"], summary["tokens"], summary["more"]) == (6, 36, 144, True)
    assert (summary["loss_first"], summary["loss_last"]) == (losses(uninterrupted)[0], losses(uninterrupted)[-1])


def test_the_time_of_measurements_is_in_their_rows_and_in_the_summary(uninterrupted):
    rows = read_rows(uninterrupted / "metrics.jsonl")
    measured = [row["measure_seconds"] for row in rows if "measure_seconds" in row]
    assert [row["step"] for row in rows if "measure_seconds" in row] == [3, 6] and min(measured) >= 0.01
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["measure_seconds"] == pytest.approx(sum(measured)) and summary["retain_seconds"] == 3.0


@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_stopped_stage_resumes_with_the_losses_of_an_uninterrupted_one(uninterrupted, ranks, tmp_path, step):
    def signalled(at, row):
        if at == step:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(Stopped, match=f"align: stopped at step {step + 1}, saved in"):
        run(tmp_path, ranks, disturb=signalled)
    assert not (tmp_path / "summary.json").exists()
    run(tmp_path, ranks, seed=1)
    assert losses(tmp_path) == losses(uninterrupted)


def test_a_stop_at_the_last_step_finishes_the_stage_and_ends_the_run(ranks, tmp_path):
    """The request was forgotten, and the next stage began."""
    with pytest.raises(Stopped, match="align: stopped when it was done"):
        run(tmp_path, ranks, disturb=lambda step, row: step < STEPS - 1 or os.kill(os.getpid(), signal.SIGTERM))
    assert (tmp_path / "summary.json").exists()


def test_a_non_finite_loss_ends_the_stage_before_the_step(uninterrupted, ranks, tmp_path):
    def poisoned(step, row):
        row["loss"] = math.nan if step == 3 else row["loss"]

    with pytest.raises(Diverged, match="the loss is nan at step 4; .* Samples of the step: sample 3"):
        run(tmp_path, ranks, disturb=poisoned)
    run(tmp_path, ranks, seed=1)
    assert losses(tmp_path) == losses(uninterrupted)


@pytest.mark.parametrize("reaction", ["stop", "warn", "off"])
def test_a_loss_spike(uninterrupted, ranks, tmp_path, capsys, monkeypatch, reaction):
    """It is reported with its samples before the step is taken; with `warn` the same command continues past it."""
    monkeypatch.setattr("dcr_ds.engine.watch.spikes.NUM_NEEDED", 3)

    def spiked(step, row):
        row["loss"] += 1e3 * (step == 4)

    recipe = RECIPE.model_copy(update={"watchdog": WatchdogSection(loss_spike=reaction)})
    if reaction == "stop":
        with pytest.raises(Diverged, match="the loss jumps to 10.* at step 5; .* Samples of the step: sample 4.*warn"):
            run(tmp_path, ranks, disturb=spiked, recipe=recipe)
        assert losses(tmp_path) == losses(uninterrupted)[:4]
        recipe = RECIPE.model_copy(update={"watchdog": WatchdogSection(loss_spike="warn")})
    run(tmp_path, ranks, disturb=spiked, recipe=recipe)
    assert ("the loss jumps to" in capsys.readouterr().err) == (reaction != "off")
    assert [loss % 1e3 for loss in losses(tmp_path)] == pytest.approx(losses(uninterrupted))
    assert "recent_losses" not in json.loads((tmp_path / "summary.json").read_text())


def test_a_deadline_saves_and_ends_the_stage(uninterrupted, ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("DCR_DS_DEADLINE", str(time.time() + 1))  # less than the margin
    for step in range(1, STEPS):
        with pytest.raises(Stopped, match=f"align: stopped at step {step}, saved"):
            run(tmp_path, ranks)
    run(tmp_path, ranks)
    assert losses(tmp_path) == losses(uninterrupted)


@pytest.mark.parametrize("slow_disk", [1e-3, 1.0])
def test_the_deadline_is_compared_with_measured_saves(uninterrupted, ranks, tmp_path, monkeypatch, slow_disk):
    """An estimate of weeks, as for a large model, leads to a save that is measured, and not to a stop."""
    monkeypatch.setattr("dcr_ds.engine.checkpoint.checkpoints.SLOW_DISK", slow_disk)
    monkeypatch.setenv("DCR_DS_DEADLINE", str(time.time() + 600))
    run(tmp_path, ranks)
    assert losses(tmp_path) == losses(uninterrupted)


def test_a_clock_change_does_not_move_the_deadline(uninterrupted, ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("DCR_DS_DEADLINE", str(time.time() + 600))
    real = time.time

    def jump(step, row):
        monkeypatch.setattr(time, "time", lambda: real() + 1e6 * (-1) ** step)

    run(tmp_path, ranks, disturb=jump)
    assert losses(tmp_path) == losses(uninterrupted)
