"""docs/cloud/skypilot.yaml: fields of SkyPilot, scripts that ShellCheck accepts, and a run that is kept and resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import ROOT
from small_runs import write_recipe
from tiny import make_model, one_thread_environment

TASK = yaml.safe_load((ROOT / "docs" / "cloud" / "skypilot.yaml").read_text(encoding="utf-8"))
# of https://docs.skypilot.co/en/latest/reference/yaml-spec.html
FIELDS = {
    "name",
    "workdir",
    "num_nodes",
    "resources",
    "envs",
    "secrets",
    "volumes",
    "file_mounts",
    "setup",
    "run",
    "config",
}
RESOURCES = {
    "infra", "accelerators", "cpus", "memory", "instance_type", "use_spot", "disk_size", "disk_tier", "network_tier",
    "image_id", "ports", "labels", "autostop", "any_of", "ordered", "job_recovery",
}  # fmt: skip
# `aws s3 sync [options] FROM TO` with folders in place of buckets
AWS = """\
#!/bin/bash
from=${@: -2:1} to=${@: -1}
[ -d "$from" ] || exit 0
mkdir -p "$to"
tar -C "$from" --exclude='.lock*' -cf - . | tar -C "$to" -xf -
"""


def test_the_fields_are_those_of_skypilot():
    assert set(TASK) <= FIELDS and set(TASK["resources"]) <= RESOURCES
    assert all(isinstance(value, str) for value in TASK["envs"].values())
    assert (ROOT / TASK["envs"]["RECIPE"]).is_file()


@pytest.mark.parametrize("script", ["setup", "run"])
def test_scripts_pass_shellcheck(script, tmp_path):
    file = tmp_path / "script.sh"
    file.write_text(f"#!/bin/bash\n{TASK[script]}")
    command = [Path(sys.executable).with_name("shellcheck"), "--exclude", "SC1090,SC1091", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_run_is_kept_in_the_bucket_and_resumed_on_another_machine(tmp_path):
    recipe = write_recipe(tmp_path, make_model(tmp_path / "model"))
    bucket = tmp_path / "bucket"

    def machine(name: str) -> Path:
        """Execute the task in a home folder of its own; returns the run folder there."""
        home = tmp_path / name
        programs = home / "dcr-ds" / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        (programs / "activate").write_text(f'export PATH="{programs}:{Path(sys.executable).parent}:$PATH"\n')
        (programs / "aws").write_text(AWS)
        (programs / "aws").chmod(0o755)
        values = {"RECIPE": str(recipe), "NAME": "kept", "BUCKET": str(bucket), "SKYPILOT_NUM_GPUS_PER_NODE": "1"}
        environment = one_thread_environment(HOME=str(home), PYTHONPATH=os.environ.get("PYTHONPATH", ""), **values)
        subprocess.run(["bash", "-c", TASK["run"]], cwd=ROOT, env=environment, check=True, timeout=280)
        return home / "runs" / "kept"

    first = machine("first")
    assert (bucket / "kept" / "align" / "summary.json").is_file() and not list((bucket / "kept").glob(".lock*"))
    second = machine("second")
    summaries = [json.loads((run / "align" / "summary.json").read_text()) for run in (first, second)]
    assert summaries[0] == summaries[1]  # copied, not trained again
    metrics = second / "align" / "metrics.jsonl"
    newer = metrics.read_text() + '{"step": 99}\n'  # as written after the last copy to the bucket
    metrics.write_text(newer)
    machine("second")
    assert metrics.read_text() == newer
