"""Who is to blame if a job cannot start: what is the same on all nodes is the user's, what differs is a node's.

Jobs run the real preflight and then a dry run, which loads no weights.
"""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)
HIDE = 'exec unshare --mount bash -c \'mount -t tmpfs none "$0" && exec "$@"\''  # an empty folder in place of $0


def submit(cluster, recipe: str, tmp_path: Path, *options: str, **environment: str) -> str:
    arguments = [recipe, "--output", str(tmp_path / "runs"), "--dry-run"]
    settings = {"DCR_DS_PREFLIGHT_SECONDS": "60"} | environment
    return cluster.submit(*options, "--time=10", "slurm/dcr.sh", *arguments, **settings)


def is_the_users(cluster, job: str, message: str) -> None:
    described = cluster.end(job, "FAILED", 120)
    assert (described["ExitCode"], described["Restarts"], described["ExcNodeList"]) == ("2:0", "0", "(null)")
    assert message in cluster.log(job), cluster.log(job)


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ("--nodes=2", {"DCR_DS_FREE_GIB": "1e9"}, "GiB free, 1e+09 are required; free some space, set --output"),
        ("--nodes=2", {"DCR_DS_PYTHON": "/no/such/python"}, "/no/such/python: No such file or directory"),
        ("--nodes=2", {"DCR_DS_PYTHON": "/usr/bin/python3"}, "ModuleNotFoundError: No module named"),
        ("--nodes=2 --export=DCR_DS_LOGS,PATH=/usr/bin:/bin", {}, "and --export: "),
        ("--gpus-per-node=4", {}, "4 requested: this torch was built without CUDA"),
        ("--nodes=1", {"DCR_DS_CONTAINER": "image"}, "unrecognized option '--container-image=image'"),
        ("--nodes=1", {"DCR_DS_CONTAINER": "image", "DCR_DS_PREFLIGHT_SECONDS": "0"}, "srun cannot start the ranks"),
        ("--nodes=1", {"DCR_DS_CONTAINER": "image", "DCR_DS_CONTAINER_WITH": "docker"}, "neither pyxis nor apptainer"),
    ],
)
def test_a_mistake_of_the_user_or_the_site_excludes_no_node(cluster, recipe, tmp_path, options, environment, message):
    is_the_users(cluster, submit(cluster, recipe, tmp_path, *options.split(), **environment), message)


def test_a_run_folder_that_each_node_has_for_itself_is_the_users(cluster, recipe, tmp_path, in_place_of_python):
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    (tmp_path / "runs").mkdir()
    python = in_place_of_python(f'[[ $RANK == 0 ]] && exec python "$@"\n{HIDE} {tmp_path}/runs python "$@"')
    job = submit(cluster, recipe, tmp_path, "--nodes=2", DCR_DS_PYTHON=python, DCR_DS_PREFLIGHT_SECONDS="30")
    is_the_users(cluster, job, "is not that of the first node; all nodes must share the run folder (--output)")


def test_the_second_node_is_excluded_if_only_there_python_does_not_start(cluster, recipe, tmp_path, in_place_of_python):
    """Submitted with a cyclic distribution of two ranks per node: rank 1 would be on the second node."""
    python = in_place_of_python('[[ $SLURMD_NODENAME != node2 ]] || exit 127\nexec python "$@"')
    job = submit(cluster, recipe, tmp_path, "--nodes=2", "--ntasks-per-node=2", "--distribution=cyclic",
                 DCR_DS_PYTHON=python, DCR_DS_PREFLIGHT_SECONDS="30")  # fmt: skip
    described = cluster.end(job, "COMPLETED", 240)
    assert (described["Restarts"], described["ExcNodeList"]) == ("1", "node2")
    assert "preflight: node2: no answer" in cluster.log(job)


def test_a_node_on_which_srun_cannot_launch_is_excluded(cluster, recipe, tmp_path):
    """The environment is activated after the job has begun, and before its ranks: meanwhile a slurmd dies."""
    pid_file = cluster.home / "lab/pid/slurmd-node2"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/activate").write_text(f"((${{SLURM_RESTART_COUNT:-0}} > 0)) || kill -9 $(<{pid_file})\n")
    job = submit(cluster, recipe, tmp_path, "--nodes=2", DCR_DS_VENV=str(tmp_path))
    try:
        described = cluster.end(job, "COMPLETED", 240)
    finally:
        cluster.restart()
    assert described["ExcNodeList"] == "node2" and "srun cannot start tasks on node2" in cluster.log(job)


@pytest.fixture
def apptainer(tmp_path) -> dict[str, str]:
    """A stand-in for apptainer, in which a folder is empty unless it is mounted; the settings that use it."""
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    script, hidden = tmp_path / "bin/apptainer", tmp_path / "scratch"
    script.parent.mkdir()
    hidden.mkdir()
    script.write_text(
        "#!/bin/bash\n"
        "shift\nwhile [[ $1 == --* ]]; do\n"
        "[[ $1 != --bind ]] || mounts=$2; [[ $1 == --nv ]] || shift; shift\ndone; shift\n"
        f'[[ ,$mounts, != *",{hidden}"[:/]* ]] || exec "$@"\n'
        f'{HIDE} {hidden} "$@"\n'
    )
    script.chmod(0o755)
    return {"DCR_DS_CONTAINER": "image.sif", "DCR_DS_CONTAINER_WITH": "apptainer", "HF_HOME": str(tmp_path / "hub"),
            "DCR_DS_CACHE": str(tmp_path / "cache")}  # fmt: skip


def with_path(cluster, tmp_path: Path) -> str:
    return f"{tmp_path}/bin:{cluster.environment['PATH']}"


def test_the_run_folder_is_mounted_in_the_container(cluster, recipe, tmp_path, apptainer):
    job = submit(cluster, recipe, tmp_path, "--nodes=1", PATH=with_path(cluster, tmp_path), **apptainer)
    cluster.end(job, "COMPLETED", 120)
    extended = tmp_path / "extended.yaml"
    extended.write_text(f"extends: {recipe}\noutput: {tmp_path}/scratch/runs\n")
    job = cluster.submit("--time=10", "slurm/dcr.sh", str(extended), "--dry-run",
                         PATH=with_path(cluster, tmp_path), **apptainer)  # fmt: skip
    cluster.end(job, "COMPLETED", 120)


def test_a_run_folder_that_exists_in_the_container_only_is_the_users(cluster, recipe, tmp_path, apptainer):
    (tmp_path / "base.yaml").write_text(f"extends: {recipe}\noutput: {tmp_path}/scratch/runs\n")
    (tmp_path / "extended.yaml").write_text("extends: base.yaml\n")  # the job script does not follow `extends`
    job = cluster.submit("--time=10", "slurm/dcr.sh", str(tmp_path / "extended.yaml"), "--dry-run",
                         PATH=with_path(cluster, tmp_path), **apptainer)  # fmt: skip
    is_the_users(cluster, job, f"{tmp_path}/scratch in the container is not that of the host")
