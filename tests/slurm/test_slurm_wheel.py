"""A job of dcr-ds that was installed from its wheel: no checkout, submitted by `dcr-ds slurm` from an empty folder."""

import json
import subprocess

import pytest
from built_wheel import build_wheel, install_wheel


@pytest.mark.timeout(900)
def test_job_of_the_installed_package_trains_on_two_nodes(cluster, recipe, tmp_path):
    home, empty = tmp_path / "environment", tmp_path / "empty"
    for folder in (tmp_path / "sources", tmp_path / "dist", empty):
        folder.mkdir()
    environment = install_wheel(build_wheel(tmp_path / "sources", tmp_path / "dist"), home)
    slurm = {
        name: cluster.environment[name] for name in ("SLURM_CONF", "SBATCH_OUTPUT", "DCR_DS_LOGS", "DCR_DS_FREE_GIB")
    }
    environment |= slurm | {"DCR_DS_SBATCH": "--nodes=2 --time=20"}
    options = ["--output", "runs", "--stages", "[refine]", "--refine.max_steps", "3"]
    command = [str(home / "bin/dcr-ds"), "slurm", recipe, *options]
    done = subprocess.run(command, cwd=empty, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[-1]
    cluster.end(job, "COMPLETED", 600)
    assert "python -u -m dcr_ds train" in cluster.log(job)
    run = empty / "runs/tiny"
    assert json.loads((run / "refine/summary.json").read_text())["steps"] == 3
    recorded = json.loads((run / "environment.json").read_text())
    assert (recorded["world_size"], recorded["commit"]) == (2, None)
