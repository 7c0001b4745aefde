"""The folders that slurm/job.sh mounts in a container: those that the run writes, whatever their names."""

import subprocess

import pytest
import yaml
from processes import ROOT

SCRIPT = """
set -euo pipefail
source slurm/common.sh; source slurm/job.sh
project=$0 log_folder=$0/logs scripts=slurm DCR_DS_CONTAINER=image
mount_folders "$@"
echo "$mounts"
"""


def mounts(tmp_path, *arguments) -> subprocess.CompletedProcess:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path),
        "DCR_DS_CACHE": str(tmp_path),
    }
    words = ["bash", "-c", SCRIPT, str(tmp_path / "project"), *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["runs", "my runs", "a#b", "a - b", "runs & more"])
@pytest.mark.parametrize("quote", ["", "'", '"'])
@pytest.mark.parametrize("comment", ["", "  # where the runs are"])
def test_the_output_of_a_recipe_is_mounted(tmp_path, name, quote, comment):
    recipe, output = tmp_path / "recipe.yaml", str(tmp_path / name)
    recipe.write_text(f"name: a\noutput: {quote}{output}{quote}{comment}\nseed: 1\n")
    assert yaml.safe_load(recipe.read_text())["output"] == output
    assert f",{output}:{output}" in mounts(tmp_path, recipe).stdout


def test_the_last_option_counts_and_a_path_that_cannot_be_mounted_is_named(tmp_path):
    found = mounts(tmp_path, "recipe.yaml", "--output", tmp_path / "a", f"--output={tmp_path / 'b c'}").stdout
    assert f"{tmp_path / 'b c'}:" in found and f"{tmp_path / 'a'}:" not in found
    for name in ("a:b", "a,b"):
        refused = mounts(tmp_path, "recipe.yaml", "--output", tmp_path / name)
        assert refused.returncode == 2 and f"{tmp_path / name}: a container cannot mount" in refused.stderr
