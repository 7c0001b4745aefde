"""The commands that redo the paper's table are valid, and a dry run prints them with the GPU-hours of the plan."""

import shlex

import pytest
from scripts import FOLDER, run_python
from small_runs import write_recipe
from tiny import make_model

from dcr_ds.commands.baseline.recipes import parse
from dcr_ds.commands.report import _parse as parse_report
from dcr_ds.data.benchmarks import suites
from dcr_ds.plan.shapes import find_shape
from dcr_ds.recipe.arguments import parse_train

SCRIPT = FOLDER / "paper_table.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import paper_table

    return paper_table


def test_the_commands_of_each_model_are_valid_and_belong_together(script):
    for recipe in script.RECIPES:
        commands = script.commands_of(recipe, "runs/table", ["deepspeed", "--num_gpus", "8"], ["--seed", "3"])
        run = parse_train(commands.dcr[4:]).load()
        options, augmented = parse("stl-aug", commands.data[3:])
        report = parse_report(commands.report[2:])
        assert augmented == run  # so that the steps of its refine are found
        assert (run.control, run.seed, run.stages) == ("stl", 3, ["refine", "align", "evaluate"])
        assert [benchmark.name for benchmark in run.evaluate.benchmarks] == ["paper"] and "paper" in suites()
        assert commands.stl_aug[4] == str(options.out / "recipe.yaml") and options.max_new_tokens < run.align.max_length
        assert [str(folder) for folder in report.runs] == [str(run.folder), f"{run.folder}-stl-aug"]
        assert find_shape(run.model)[1] == "shape shipped with dcr-ds"  # planned without a hub


@pytest.mark.slow
def test_a_dry_run_prints_the_commands_and_the_hours_of_the_plan(tmp_path):
    recipe = write_recipe(tmp_path, make_model(tmp_path / "tiny", layers=2))
    fields = ["--stages", "[refine, align]", "--data.general.rows", "6", "--data.refusals.rows", "6"]
    done = run_python(SCRIPT, "--dry-run", "--recipes", recipe, "--out", tmp_path / "runs", *fields)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert shlex.split(lines[0])[:5] == ["deepspeed", "--num_gpus", "8", "train.py", str(recipe)]
    assert lines[1].startswith("dcr-ds baseline stl-aug") and lines[3].startswith("dcr-ds report")
    steps = {line[2:16].strip(): int(line[16:].split()[0]) for line in lines if " steps  " in line}
    assert steps == {"DCR, refine": 1, "DCR, align": 1, "STL (control)": 1, "STL-aug": 2}
    assert "Assumed:" in done.stdout and "GPU-hours of training" in lines[-1]
    assert not (tmp_path / "runs").exists()


def test_a_launcher_with_an_open_quote_is_refused():
    done = run_python(SCRIPT, "--launcher", "torchrun 'x", "--dry-run")
    assert done.returncode == 2 and "--launcher torchrun 'x: No closing quotation" in done.stderr


@pytest.mark.parametrize("field", ["--name", "--output"])
def test_names_of_runs_are_not_changed(field):
    done = run_python(SCRIPT, "--dry-run", field, "x")
    assert done.returncode == 2 and f"{field}: the runs are named after their recipes" in done.stderr
    assert not done.stdout


def test_a_failed_command_ends_the_sequence(tmp_path):
    done = run_python(SCRIPT, "--launcher", "python", "--recipes", tmp_path / "none.yaml", "--out", tmp_path / "runs")
    assert done.returncode == 2 and done.stdout.count("$ ") == 1
    assert "no such recipe file" in done.stderr
