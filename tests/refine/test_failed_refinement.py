"""A failed stage 1 ends the run with the reasons and keeps its weights; the run continues only with on_failure."""

import json

import pytest
from small_runs import the_error, write_recipe
from tiny import make_model

from dcr_ds.cli import main
from dcr_ds.refine.outcome import outcome

RUNS = {
    "gap": ({"learning_rate": 1e-9}, "the held-out gap is not above its start"),
    "drift": ({"learning_rate": 1e-3, "max_drift": 0.01, "retain_weight": 0}, "drifted beyond the bound"),
}
START = {"gap": 0.1, "auc": 0.8, "within": 0.9, "across": 0.8, "drift": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return make_model(folder, layers=2, tied=False, hidden_size=64, intermediate_size=128, initializer_range=0.05)


def train(recipe, *words) -> int:
    return main(["train", str(recipe), "--refine.on_failure", "stop", "--refine.max_steps", "2", *words])


@pytest.mark.parametrize("name", RUNS)
def test_a_failed_refinement_ends_the_run_before_align(model, tmp_path, capsys, name):
    fields, reason = RUNS[name]
    recipe = write_recipe(tmp_path, model)
    words = [str(word) for field, value in fields.items() for word in (f"--refine.{field}", value)]
    assert train(recipe, *words) == 1
    message = the_error(capsys.readouterr().err.replace("WARNING: ", ""))
    assert message.startswith("refine: failed: ") and reason in message and "on_failure continue" in message
    run = tmp_path / "runs" / "run"
    summary = json.loads((run / "refine" / "summary.json").read_text())
    assert any(reason in text for text in summary["failures"])
    assert len(summary["warnings"]) == 1 and reason in summary["warnings"][0]
    assert (summary["best_step"], summary["exported_step"]) == (0, 2)
    assert summary["best"] == summary["final"]
    assert reason in (run / "report" / "report.md").read_text() and not (run / "align").exists()

    assert train(recipe, *words) == 1  # it is not considered done when the command is repeated
    written = (run / "refine" / "model" / "model.safetensors").stat().st_mtime_ns
    assert train(recipe, *words, "--refine.on_failure", "continue") == 0
    assert (run / "align" / "model").is_dir()
    assert (run / "refine" / "model" / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"gap": 0.1}, ["gap"]),
        ({"auc": 0.7}, ["AUC"]),
        ({"drift": 0.5}, ["drift"]),
        ({"gap": 0.0, "auc": 0.1, "drift": 9.0}, ["gap", "drift", "AUC"]),
    ],
)
def test_each_kind_of_failed_refinement_is_named(last, words):
    last = START | {"gap": 0.3} | last
    result = outcome({"start": START, "best": START, "best_step": 0, "last": last}, 7, 0.4)
    assert all(word in reason for word, reason in zip(words, result["failures"], strict=True))
    assert result["exported_step"] == 7 and result["best"] == last
    assert len(result["warnings"]) == 1 and all(reason in result["warnings"][0] for reason in result["failures"])


def test_a_good_earlier_step_gives_a_warning_only():
    best, last = START | {"gap": 0.3, "drift": 0.1}, START | {"gap": 0.5, "drift": 0.6}
    result = outcome({"start": START, "best": best, "best_step": 5, "last": last}, 7, 0.4)
    assert result["failures"] == [] and result["exported_step"] == 5 and result["final"] == last
    assert len(result["warnings"]) == 1 and "step 5" in result["warnings"][0] and "step 7" in result["warnings"][0]


def test_a_good_last_step_gives_no_warning():
    best = START | {"gap": 0.3, "drift": 0.1}
    result = outcome({"start": START, "best": best, "best_step": 7, "last": best}, 7, 0.4)
    assert result == {"final": best, "best": best, "exported_step": 7, "failures": [], "warnings": []}
