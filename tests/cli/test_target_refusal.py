"""Refusal log-odds during alignment: curves in the metrics, and stopping at a target share of refusals."""

import json
from pathlib import Path

import pytest
from processes import as_ranks, run_command
from small_runs import TOPICS, write_rows

from dcr_ds.cli import main
from dcr_ds.recipe.layout import RunFolder

TRAIN = Path(__file__).parents[2] / "train.py"
# 12 refusals and general answers per epoch, all of them in every step, so that refusals are learnt in a few steps
OPTIONS = {
    "stages": "[align]", "align.measure_every": 2, "align.epochs": 40, "align.learning_rate": 3e-3,
    "align.schedule": "constant",
}  # fmt: skip


def arguments(recipe, name, **more) -> list[str]:
    refusals = Path(recipe).with_name("sorry.jsonl")
    write_rows(refusals, [{"prompt": f"burn {topic}", "response": "Sorry."} for topic in TOPICS])
    options = (
        OPTIONS
        | {"name": name, "data.refusals": refusals}
        | {key.replace("__", "."): value for key, value in more.items()}
    )
    return [recipe, *(str(part) for key, value in options.items() for part in (f"--{key}", value))]


def rows(recipe, name, stage="align") -> list[dict]:
    run = RunFolder(Path(recipe).parent / "runs" / name)
    return [json.loads(line) for line in run.stage(stage).metrics.read_text().splitlines()]


def summary(recipe, name, stage="align") -> dict:
    return json.loads(RunFolder(Path(recipe).parent / "runs" / name).stage(stage).summary.read_text())


@pytest.fixture(scope="module")
def measured(recipe) -> str:
    assert main(["train", *arguments(recipe, "curve")]) == 0
    return "curve"


def test_every_measured_step_has_metrics_per_category(recipe, measured):
    table = rows(recipe, measured)
    assert [row["step"] for row in table if "log_odds_toxic" in row] == list(range(2, 41, 2))
    start, final = summary(recipe, measured)["start"], summary(recipe, measured)["final"]
    for category in ("toxic", "seemingly_toxic"):
        assert 0 <= final[f"refused_{category}"] <= 1
        assert final[f"log_odds_{category}"] > start[f"log_odds_{category}"]  # it learns to refuse
    assert "40 epochs done" in summary(recipe, measured)["stopped_because"]


def test_measuring_does_not_change_the_weights(recipe, measured):
    assert main(["train", *arguments(recipe, "plain", **{"align__measure_every": 0})]) == 0
    assert [row["loss"] for row in rows(recipe, "plain")] == [row["loss"] for row in rows(recipe, measured)]


def test_alignment_stops_at_the_target_refusal(recipe, measured, capsys):
    reached = next(row["step"] for row in rows(recipe, measured) if row.get("refused_toxic") == 1)
    assert reached < 40
    assert main(["train", *arguments(recipe, "target", **{"align__target_refusal": 1})]) == 0
    assert len(rows(recipe, "target")) == reached
    assert summary(recipe, "target")["stopped_because"].startswith("100% of the held-out toxic prompts")


def test_two_ranks_under_zero3_measure_the_same_values(recipe, measured, tmp_path):
    more = {"align__epochs": 4, "deepspeed": "ds_configs/zero3.json"}
    run_command(*as_ranks(2), TRAIN, *arguments(recipe, "zero3", **more))
    for row, expected in zip(rows(recipe, "zero3"), rows(recipe, measured), strict=False):
        for name, value in row.items():
            if name.startswith("log_odds_"):
                assert value == pytest.approx(expected[name], rel=1e-3, abs=1e-3)


def test_target_refusal_without_measurements_is_an_error(failing):
    assert "align.target_refusal: needs align.measure_every" in failing("--align.target_refusal", 0.9)
