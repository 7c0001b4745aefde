"""The Python API with a tiny model: recipes, runs in this process, results, errors."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import ROOT
from small_runs import write_recipe

import dcr_ds

GUIDE = ROOT / "docs" / "python.md"


@pytest.fixture(scope="module")
def recipe(model_folder, tmp_path_factory):
    path = write_recipe(tmp_path_factory.mktemp("api"), model_folder)
    return dcr_ds.load_recipe(path, {"stages": ["refine", "align", "evaluate"], "evaluate.models": ["base", "aligned"]})


@pytest.fixture(scope="module")
def run(recipe):
    return dcr_ds.train(recipe)


def test_results_have_a_row_per_model_and_benchmark(run):
    rows = run.results()
    measured = [(row["model"], row["benchmark"]) for row in rows]
    expected = [
        ("base", "asked"),
        ("base", "general"),
        ("refined", "general"),
        ("aligned", "asked"),
        ("aligned", "general"),
    ]
    assert measured == expected
    rates = [row for row in rows if row["benchmark"] == "asked"]
    assert all(row["metric"] == "compliance_rate" and row["n"] == 2 and row["wanted"] == "comply" for row in rates)
    assert all(row["low"] <= row["value"] <= row["high"] for row in rates)
    assert all(row["value"] > 0 for row in rows if row["metric"] == "loss")
    assert run.table().to_dict("records")[0]["benchmark"] == "asked"


def test_run_gives_recipe_metrics_model_and_report(run, recipe):
    assert [row["step"] for row in run.metrics("refine")] == [1]
    assert run.recipe.model.dtype in ("float32", "bfloat16")  # resolved, where the recipe says auto
    assert (run.model() / "config.json").is_file() and run.report.is_file()
    assert dcr_ds.Run(recipe.folder).results() == run.results()


def test_stages_without_a_model_are_an_error(run):
    assert run.metrics("control") == []
    with pytest.raises(dcr_ds.UserError, match="no model of control: the stage is not done, or not in its recipe"):
        run.model("control")
    for read in (run.model, run.metrics):
        with pytest.raises(dcr_ds.UserError, match="'evaluate' trains no model; stages that do: refine, align"):
            read("evaluate")


def test_second_run_in_the_same_process_gives_the_same_model(run, recipe):
    again = dcr_ds.train(dcr_ds.change_recipe(recipe, {"name": "again"}))
    assert again.folder != run.folder
    assert [row["loss"] for row in again.metrics()] == [row["loss"] for row in run.metrics()]


def test_finished_run_is_not_trained_again(run, recipe):
    before = (run.model() / "model.safetensors").stat().st_mtime_ns
    assert dcr_ds.train(recipe).results() == run.results()
    assert (run.model() / "model.safetensors").stat().st_mtime_ns == before


def test_process_group_variables_are_removed_after_a_run(run):
    script = f"import os, dcr_ds\nbefore = dict(os.environ)\ndcr_ds.train(dcr_ds.Run({str(run.folder)!r}).recipe)\n"
    script += "print({name for name in os.environ if os.environ[name] != before.get(name)})"
    environment = {name: value for name, value in os.environ.items() if name not in dcr_ds.api.LAUNCHER_VARIABLES}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT"} & set(re.findall(r"\w+", done.stdout.splitlines()[-1]))


def test_shipped_recipe_is_loaded_by_its_name():
    assert dcr_ds.load_recipe("smollm2-135m") == dcr_ds.load_recipe(ROOT / "recipes" / "smollm2-135m.yaml")


def test_changed_recipe_is_a_copy(recipe):
    changed = dcr_ds.change_recipe(recipe, {"refine.layer": 2, "data.toxic": Path("mine.csv")})
    assert (changed.refine.layer, changed.data.toxic.source) == (2, "mine.csv")
    assert recipe.refine.layer == 1
    assert dcr_ds.change_recipe(changed, {"refine.layer": 1, "data.toxic": recipe.data.toxic.source}) == recipe


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"refine.layr": 2}, "unknown field 'refine.layr'. Did you mean refine.layer?"),
        ({"refine.margin": 3}, "refine.margin"),
        ({"seed": "many"}, "seed"),
    ],
)
def test_wrong_change_names_the_field(recipe, changes, expected):
    with pytest.raises(dcr_ds.UserError, match=re.escape(expected)):
        dcr_ds.change_recipe(recipe, changes)


def test_a_name_in_place_of_a_recipe_is_a_type_error():
    with pytest.raises(TypeError, match="the Recipe that load_recipe returns, this is 'smollm2-135m'"):
        dcr_ds.train("smollm2-135m")


def test_unusable_input_raises_instead_of_exiting(recipe, tmp_path):
    with pytest.raises(dcr_ds.UserError, match="no such recipe"):
        dcr_ds.load_recipe("no-such-recipe")
    with pytest.raises(dcr_ds.UserError, match="refine.layer: 9 is out of range"):
        dcr_ds.train(dcr_ds.change_recipe(recipe, {"refine.layer": 9, "name": "wrong"}))
    with pytest.raises(dcr_ds.UserError, match="not a run folder"):
        dcr_ds.Run(tmp_path)


def test_training_outside_the_main_thread_is_an_error(recipe):
    errors = []

    def call():
        try:
            dcr_ds.train(recipe)
        except dcr_ds.UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert len(errors) == 1 and "main thread" in errors[0]


def test_guide_runs_as_written(model_folder, tmp_path):
    """A file with the name of a shipped recipe in the working folder takes precedence."""
    path = write_recipe(tmp_path, model_folder)
    text = path.read_text().replace("stages: [refine, align]\n", "").replace(str(tmp_path / "runs"), "runs")
    (tmp_path / "smollm2-135m").write_text(text)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "aligned asked compliance_rate" in done.stdout
