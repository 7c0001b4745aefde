"""Build the wheel of the project, and install it into a new virtual environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from processes import ROOT
from tiny import one_thread_environment

SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "dcr_ds", "kernels", "recipes", "ds_configs", "slurm")
INHERITED = ("PYTHON", "SLURM_", "DCR_DS_", "SBATCH_", "VIRTUAL_ENV")  # variables that must not reach the installation


def build_wheel(sources: Path, target: Path) -> Path:
    """Build from a copy in the folder `sources`, since a build in the checkout packs what an earlier one left there."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, sources)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(sources)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = target.glob("*.whl")
    return path


def install_wheel(wheel: Path, home: Path) -> dict[str, str]:
    """Create a virtual environment in `home` with nothing but the wheel; return the variables of its processes.

    The dependencies are those of the environment that runs the tests, through .pth entries, which do not process its
    editable installs.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=120)
    python = home / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    parents = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(parents) + "\n")
    inherited = {name: value for name, value in one_thread_environment().items() if not name.startswith(INHERITED)}
    return inherited | {"PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
