"""A private SLURM of three virtual nodes for the tests of a session, and jobs on it as a user submits them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from small_runs import write_recipe
from tiny import make_model, one_thread_environment

ROOT = Path(__file__).parents[2]
CLUSTER = str(ROOT / "tests/slurm/cluster.sh")
NODES = 3
SECTIONS = {
    "name": "tiny",
    "stages": ["refine", "align", "evaluate"],
    "checkpoint": {"every_steps": 5},
    "deepspeed": "ds_configs/zero3.json",
}
LONG_REFINE = {"max_steps": 100, "patience": 100000, "target_gap": 2, "measure_every": 20}


def pytest_addoption(parser):
    parser.addoption("--slurm", choices=["quick", "all"], help="run the tests on a private SLURM: one, or all")


def pytest_collection_modifyitems(config, items):
    """Skip the tests of this folder unless they were asked for and can be run, and give the reason."""
    asked = config.getoption("--slurm", default=None)
    search = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=search)]
    for item in (item for item in items if Path(__file__).parent in item.path.parents):
        if asked is None:
            item.add_marker(pytest.mark.skip(reason="needs a SLURM: make test-slurm-quick, make test-slurm"))
        elif asked == "quick" and "quick" not in item.path.name:
            item.add_marker(pytest.mark.skip(reason="not the quick test: make test-slurm"))
        elif missing:
            item.add_marker(pytest.mark.skip(reason=f"{missing[0]} is missing: tests/slurm/cluster.sh install"))
        elif os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="slurmd needs root"))


@dataclass
class Cluster:
    """A running SLURM and the environment that its clients need."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def call(self, *command: str, **environment: str) -> str:
        """Run a command of SLURM, or a script that submits, from the project's folder; return what it printed."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment | environment,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, **environment: str) -> str:
        """Submit with sbatch; return the job id."""
        return self.call("sbatch", "--parsable", *arguments, **environment).strip()

    def job(self, job: str) -> dict[str, str]:
        """SLURM's description of a job: JobState, Restarts, ExitCode, NodeList, …"""
        words = self.call("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self, job: str) -> str:
        """The job's own output, over all attempts."""
        path = self.home / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def attempt(self, job: str, number: int = 0) -> Path:
        """The folder of the logs of an attempt."""
        return self.home / "logs/lab" / job / f"attempt-{number}"

    def wait(self, job: str, done: Callable[[], bool], seconds: float) -> None:
        """Wait for something to happen in a job."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"job {job} after {seconds} s: {self.job(job)}\n{self.log(job)[-6000:]}"
            time.sleep(0.1)

    def restart(self) -> None:
        """Start again the daemons that a test has killed, and the nodes that SLURM has given up since."""
        subprocess.run([CLUSTER, "start", str(self.home / "lab"), str(NODES)], check=False, timeout=60)
        for node in range(1, NODES + 1):
            subprocess.run(["scontrol", "update", f"NodeName=node{node}", "State=RESUME"], env=self.environment)

    def end(self, job: str, state: str, seconds: float) -> dict[str, str]:
        """Wait for the end of a job, which must be in this state; return SLURM's description of it."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(job, lambda: self.job(job)["JobState"] in ends, seconds)
        described = self.job(job)
        assert described["JobState"] == state, f"{described}\n{self.log(job)[-6000:]}"
        return described


@pytest.fixture
def cluster(slurm) -> Iterator[Cluster]:
    """The cluster with nothing on it and all nodes idle, before the test and after."""
    yield slurm
    slurm.call("scancel", "--user", "root")
    deadline = time.monotonic() + 60
    while len(slurm.call("sinfo", "--noheader", "--Node", "--states=idle").splitlines()) < NODES:
        assert time.monotonic() < deadline, slurm.call("sinfo", "--Node") + slurm.call("squeue")
        time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    home = Path(tempfile.mkdtemp(prefix="dcr-slurm-", dir="/tmp"))  # short: a socket's path has 108 characters
    environment = one_thread_environment(
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        SLURM_CONF=str(home / "lab/slurm.conf"),
        SBATCH_OUTPUT=str(home / "%j.out"),
        DCR_DS_LOGS=str(home / "logs"),
        DCR_DS_FREE_GIB="0.1",
    )
    try:
        subprocess.run([CLUSTER, "start", str(home / "lab"), str(NODES)], check=True, timeout=60)
        yield Cluster(home, environment)
    finally:
        subprocess.run([CLUSTER, "stop", str(home / "lab")], check=False, timeout=120)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def in_place_of_python(tmp_path) -> Callable[[str], str]:
    """Write a script of bash that ranks run in place of Python; return its path, for DCR_DS_PYTHON."""

    def write(text: str) -> str:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/bash\n{text}\n")
        script.chmod(0o755)
        return str(script)

    return write


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> str:
    """A recipe of a tiny model under ZeRO-3, all three stages; a run of it takes seconds once it has begun."""
    home = tmp_path_factory.mktemp("recipe")
    path = write_recipe(home, make_model(home / "model", layers=2, tied=False))
    recipe = yaml.safe_load(path.read_text()) | SECTIONS
    recipe["refine"] |= LONG_REFINE
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@pytest.fixture
def rows() -> Callable[[Path], list[dict]]:
    """The rows of a metrics.jsonl; none if it does not exist yet."""

    def read(metrics: Path) -> list[dict]:
        if not metrics.exists():
            return []
        whole = metrics.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in whole]

    return read
