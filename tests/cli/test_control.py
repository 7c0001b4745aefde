"""control: stl trains the same alignment from the base model in the same run folder."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dcr_ds.cli import main
from dcr_ds.recipe.layout import RunFolder

ALL = ["--stages", "[refine, align, evaluate]", "--control", "stl", "--evaluate.models", "[aligned, control]"]


@pytest.fixture(scope="module")
def run(recipe) -> RunFolder:
    assert main(["train", recipe, *ALL, "--name", "with-control"]) == 0
    return RunFolder(Path(recipe).parent / "runs" / "with-control")


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def losses(run: RunFolder, stage: str) -> list[float]:
    return [json.loads(line)["loss"] for line in run.stage(stage).metrics.read_text().splitlines()]


def test_the_control_is_the_run_without_refine(recipe, run, capsys):
    assert main(["train", recipe, "--name", "stl", "--stages", "[align]", "--control", "stl"]) == 0
    assert "WARNING: control: stl has no effect without refine" in capsys.readouterr().err
    stl = RunFolder(Path(recipe).parent / "runs" / "stl")
    assert losses(run, "control") == losses(stl, "align") != losses(run, "align")
    assert weights(run.stage("control").model) == weights(stl.stage("align").model)


def test_the_control_is_evaluated_and_reported_next_to_the_result(run):
    assert run.model("control").benchmark("asked").scores.is_file()
    report = run.report.read_text()
    assert "| STL" in report.replace("  ", " ") or " STL " in report
    assert " DCR " in report


def test_redo_of_align_repeats_the_control_and_redo_of_refine_does_not(recipe, run):
    summary = run.stage("control").summary

    def times() -> list[int]:
        return [run.stage(stage).summary.stat().st_mtime_ns for stage in ("refine", "align", "control")]

    before = times()
    assert main(["train", recipe, *ALL, "--name", "with-control", "--redo", "refine"]) == 0
    after = times()
    assert after[0] > before[0] and after[1] > before[1] and after[2] == before[2]
    assert main(["train", recipe, *ALL, "--name", "with-control", "--redo", "align"]) == 0
    assert times()[0] == after[0] and summary.stat().st_mtime_ns > after[2]


def test_a_finished_run_gets_a_control_later(recipe, capsys):
    assert main(["train", recipe, "--name", "later"]) == 0
    assert main(["train", recipe, "--name", "later", "--control", "stl"]) == 0
    run = RunFolder(Path(recipe).parent / "runs" / "later")
    assert run.stage("control").is_done and "refine: already done" in capsys.readouterr().err


def test_a_run_without_refine_is_its_own_control(recipe):
    assert main(["train", recipe, "--name", "alone", "--stages", "[align]", "--control", "stl"]) == 0
    run = RunFolder(Path(recipe).parent / "runs" / "alone")
    assert run.stage("align").is_done and not run.stage("control").folder.exists()
