"""environment.json records where a run happened, and no secret."""

import json
import os
import subprocess

from dcr_ds.files import read_json
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import RunFolder
from dcr_ds.run.environment import describe_environment
from dcr_ds.run.folder import save_run


def test_slurm_job_is_recorded(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "slurm" not in describe_environment("CPU", 1)
    for name, value in {"JOB_ID": "17", "JOB_NODELIST": "node[1-2]", "RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert describe_environment("CPU", 2)["slurm"] == {"job": "17", "nodes": "node[1-2]", "restarts": "1"}


def test_no_secret_of_the_environment_is_recorded(monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "SLURM_JWT", "DCR_DS_ANYTHING", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "a-secret-value")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert "a-secret-value" not in json.dumps(describe_environment("CPU", 1))


def test_what_was_found_for_another_model_is_not_of_this_one(tmp_path):
    """A folder of `dcr-ds evaluate` may be used for another model; its attempts are listed all the same."""
    recipe = Recipe(name="run", output=str(tmp_path), stages=["evaluate"])
    run = RunFolder(recipe.folder)
    run.model("aligned").folder.mkdir(parents=True)
    for model, overlaps in (("one", ["exact: a and b"]), ("one", []), ("two", [])):
        save_run(recipe, {"model": {"source": model}, "data": {}, "overlaps": overlaps})
        found = read_json(run.environment)
        assert found["overlaps"] == (["exact: a and b"] if model == "one" else [])
    assert len(found["attempts"]) == 3


def test_the_checkout_is_only_read(tmp_path, monkeypatch):
    """git status would write the index, with a lock that a killed run leaves in the way of the user's commits."""
    (tmp_path / "file").touch()
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b.c commit -q -m first"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
    monkeypatch.setattr("dcr_ds.run.environment.source_checkout", lambda: tmp_path)
    os.utime(tmp_path / "file", (1, 1))  # which git status would note in the index
    index = (tmp_path / ".git/index").read_bytes()
    assert len(describe_environment("CPU", 1)["commit"]) >= 40
    assert (tmp_path / ".git/index").read_bytes() == index
