"""One row per step, none repeated or lost on resume, and console lines in a fixed order."""

import json
import re

import pytest
import torch

from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.metrics import MetricsLog, read_rows
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import StageFolder

ONE_RANK = Ranks(0, 1, 0, torch.device("cpu"))
OTHER = Ranks(1, 2, 1, torch.device("cpu"))


def row(step, **more):
    return {
        "step": step,
        "samples": step * 8,
        "tokens": step * 80,
        "step_tokens": 80,
        "loss": 2.0 / step,
        "learning_rate": 1e-4,
        "grad_norm": 0.5,
    } | more


def write(folder, steps, first_step=0, total=9, ranks=ONE_RANK, recipe=None, **more):
    with MetricsLog("refine", StageFolder(folder), first_step, total, Recipe(**recipe or {}), ranks) as log:
        return [log.write(row(step, **more)) for step in steps]


def steps_in(folder):
    return [row["step"] for row in read_rows(folder / "metrics.jsonl")]


def test_every_step_has_a_row(tmp_path):
    written = write(tmp_path, [1, 2, 3], recipe={"log_every": 100})
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows == written and steps_in(tmp_path) == [1, 2, 3]
    for number, metrics in enumerate(rows, start=1):
        assert metrics["loss"] == 2.0 / number and metrics["samples"] == number * 8
        assert metrics["seconds"] >= 0 and metrics["tokens_per_second"] > 0 and metrics["memory_bytes"] > 2**20
        assert "step_tokens" not in metrics


def test_rows_are_flushed_at_once(tmp_path):
    with MetricsLog("refine", StageFolder(tmp_path), 0, 9, Recipe(), ONE_RANK) as log:
        for step in (1, 2):
            log.write(row(step))
            assert steps_in(tmp_path) == list(range(1, step + 1))


def test_a_resume_drops_only_the_rows_after_its_step(tmp_path):
    before = write(tmp_path, [1, 2, 3, 4, 5])
    write(tmp_path, [4, 5, 6], first_step=3)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert read_rows(tmp_path / "metrics.jsonl")[:3] == before[:3]


def test_a_resume_killed_before_its_first_step_loses_no_row(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    with MetricsLog("refine", StageFolder(tmp_path), 3, 9, Recipe(), ONE_RANK):
        assert steps_in(tmp_path) == [1, 2, 3]


def test_rows_that_are_lost_are_mentioned(tmp_path, capsys):
    write(tmp_path, [1, 2, 3])
    write(tmp_path, [4], first_step=3)
    assert "WARNING" not in capsys.readouterr().err
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    write(tmp_path, [4], first_step=3)
    assert f"WARNING: {file}: 2 of the 3 steps before this attempt have no row there" in capsys.readouterr().err


def test_a_new_start_drops_all_rows(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert steps_in(tmp_path) == [1]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_an_incomplete_last_line_is_skipped(tmp_path, cut):
    write(tmp_path, [1, 2, 3])
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    assert steps_in(tmp_path) == [1, 2]
    write(tmp_path, [3], first_step=2)
    assert steps_in(tmp_path) == [1, 2, 3]


def test_a_row_whose_step_is_no_number_is_left_out(tmp_path):
    write(tmp_path, [1, 2])
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text().replace('"step": 1', '"step": "1"'))
    write(tmp_path, [3], first_step=2)
    assert steps_in(tmp_path) == [2, 3]


def test_a_missing_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_the_console_line_has_a_fixed_order(tmp_path, capsys):
    write(tmp_path, [1, 2], gap=0.25, auc=0.5, drift=0.125)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    number = r"[\d.]+"
    assert re.fullmatch(
        rf"refine 2/9  loss 1\.0000  lr 1\.00e-04  grad norm 0\.500  {number} tokens/s  {number} GiB  left \d+:\d\d"
        r"  gap 0\.250  auc 0\.500  drift 0\.125",
        lines[1],
    )


def test_metrics_that_were_not_measured_are_not_in_the_line(tmp_path, capsys):
    write(tmp_path, [1], gap=None)
    assert re.search(r"left \d+:\d\d$", capsys.readouterr().out.strip())


def test_lines_are_printed_every_log_step_and_at_the_end(tmp_path, capsys):
    write(tmp_path, range(1, 8), total=7, recipe={"log_every": 3})
    assert re.findall(r"refine (\d)/7", capsys.readouterr().out) == ["3", "6", "7"]


def test_a_loss_that_is_not_finite_is_written_and_read(tmp_path):
    write(tmp_path, [1], grad_norm=float("inf"))
    assert read_rows(tmp_path / "metrics.jsonl")[0]["grad_norm"] is None


def test_other_ranks_write_and_print_nothing(tmp_path, capsys):
    assert write(tmp_path, [1], ranks=OTHER)[0]["tokens_per_second"] > 0
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = write(tmp_path, [1, 2], recipe={"tensorboard": True})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {f"refine/{name}" for name in written[0]} == set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("refine/loss")] == [2.0, 1.0]


def test_a_row_is_plain_json(tmp_path):
    write(tmp_path, [1])
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 1
