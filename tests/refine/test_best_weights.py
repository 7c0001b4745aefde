"""The weights of the best step are exported, whatever follows, and however often the run is killed."""

import json
import subprocess
import sys

import pytest
import torch
from processes import ROOT, torchrun
from safetensors.torch import load_file
from small_runs import ROWS, write_recipe, write_rows
from tiny import make_model, one_thread_environment

from dcr_ds.cli import main

# drift exceeds its bound after step 2, so that steps 3 and 4 are not valid
FIELDS = {
    "stages": "[refine]", "refine.learning_rate": 1e-3, "refine.target_gap": 2, "refine.patience": 9,
    "refine.max_drift": 0.35, "refine.max_steps": 4, "refine.on_failure": "stop", "checkpoint.every_steps": 1,
}  # fmt: skip
ZERO3 = {"deepspeed": "ds_configs/zero3.json"}
ARMS = {
    "full": {},
    "lora, ZeRO-3": ZERO3 | {"refine.adapter": "lora", "refine.lora.rank": 4, "refine.max_drift": 0.1},
}
KILLED = """
import os, sys
sys.path[:0] = {paths!r}
import conftest
from dcr_ds.cli import main
from dcr_ds.engine.session import Session
save_or_stop = Session.save_or_stop
def killed(session, *arguments, **options):
    save_or_stop(session, *arguments, **options)
    if session.step == 3:
        session.checkpoints.wait_until_saved()
        os.kill(os.getpid(), 9)
Session.save_or_stop = killed
main({words!r})
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "initializer_range": 0.05}
    return write_recipe(folder, make_model(folder / "model", layers=2, tied=False, **sizes))


def words_of(recipe, output, **fields) -> list[str]:
    values = FIELDS | {"output": output} | fields
    return ["train", str(recipe), *(str(word) for field, value in values.items() for word in (f"--{field}", value))]


def summary_of(output) -> dict:
    return json.loads((output / "run/refine/summary.json").read_text())


def weights_of(output) -> dict[str, torch.Tensor]:
    return load_file(output / "run/refine/model/model.safetensors")


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("arm", ARMS)
def test_the_best_weights_are_exported_even_after_a_kill(recipe, tmp_path, arm):
    fields = ARMS[arm]
    assert main(words_of(recipe, tmp_path / "whole", **fields)) == 0
    summary = summary_of(tmp_path / "whole")
    best = summary["best_step"]
    assert 0 < best < summary["steps"] == 4 and summary["exported_step"] == best
    assert summary["best"]["drift"] < float((FIELDS | fields)["refine.max_drift"]) < summary["final"]["drift"]
    assert summary["failures"] == [] and len(summary["warnings"]) == 1

    assert main(words_of(recipe, tmp_path / "short", **fields, **{"refine.max_steps": best})) == 0
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "short"))
    assert not list((tmp_path / "whole").rglob("snapshot*"))

    words = words_of(recipe, tmp_path / "killed", **fields)
    script = KILLED.format(paths=[str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")], words=words)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=one_thread_environment(), capture_output=True)
    assert done.returncode == -9, done.stderr[-2000:]
    checkpoint = tmp_path / "killed/run/refine/checkpoints/step-00000003"
    assert list(checkpoint.glob("snapshot-*.safetensors"))
    assert main(words) == 0
    assert summary_of(tmp_path / "killed")["best"] == summary["best"]
    assert same(weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole"))


@pytest.mark.slow
def test_two_ranks_save_the_best_weights_and_one_rank_resumes(recipe, tmp_path):
    """Killed on two ranks under ZeRO-3 and resumed on one, the weights are those of an uninterrupted run."""
    launch = torchrun(2)
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]
    words = {name: words_of(recipe, tmp_path / name, **ZERO3) for name in ("whole", "killed")}
    (script := tmp_path / "killed.py").write_text(KILLED.format(paths=paths, words=words["killed"]))
    codes = {}
    for name, command in (("whole", ["train.py", *words["whole"][1:]]), ("killed", [str(script)])):
        done = subprocess.run([*launch, *command], cwd=ROOT, env=one_thread_environment(), timeout=200)
        codes[name] = done.returncode
    assert codes["whole"] == 0 != codes["killed"]
    checkpoint = tmp_path / "killed/run/refine/checkpoints/step-00000003"
    assert len(list(checkpoint.glob("snapshot-*.safetensors"))) == 2
    assert main(words["killed"]) == 0
    uninterrupted, killed = summary_of(tmp_path / "whole"), summary_of(tmp_path / "killed")
    assert 0 < uninterrupted["exported_step"] == killed["exported_step"] < uninterrupted["steps"]
    expected, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    for name in expected:
        torch.testing.assert_close(resumed[name], expected[name], rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.rglob("snapshot*"))


def test_only_measured_steps_can_be_the_best(recipe, tmp_path):
    assert main(words_of(recipe, tmp_path, **{"refine.measure_every": 3, "refine.max_drift": 9})) == 0
    assert summary_of(tmp_path)["best_step"] in (3, 4)
    rows = [json.loads(line) for line in (tmp_path / "run/refine/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "gap" in row] == [3, 4]


def test_the_default_recipe_separates_separable_prompts(tmp_path):
    """The default section, except for steps and sizes, raises the gap of prompts that differ in a word."""
    model = make_model(tmp_path / "model", tied=False, hidden_size=64, intermediate_size=128, head_dim=16)
    recipe = write_recipe(tmp_path, model)
    for name in ("seemingly_toxic", "toxic"):
        verb = ROWS[name][0]["prompt"].split()[0]
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": f"{verb} thing {index}"} for index in range(40)])
    recipe.write_text(
        "".join(line for line in recipe.read_text().splitlines(True) if not line.startswith(("refine:", "  scale:")))
    )
    assert main(["train", str(recipe), "--stages", "[refine]"]) == 0
    summary = summary_of(tmp_path / "runs")
    assert summary["failures"] == [] and summary["best"]["gap"] > 1.5 * summary["start"]["gap"]
