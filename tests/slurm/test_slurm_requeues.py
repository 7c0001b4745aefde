"""When a job is requeued and when not: stops, failures, attempts without progress. Scripts stand in for the ranks."""

import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)
NO_PREFLIGHT = {"DCR_DS_PREFLIGHT_SECONDS": "0"}


@pytest.mark.parametrize("seconds", [0, 0.2, 0.5, 1, 2])
def test_usr1_at_any_moment_before_the_first_step_requeues_the_job(cluster, in_place_of_python, seconds):
    """It may come before the ranks, while srun starts them, or before Python has a handler.

    Before the script has its handler, which it sets first, SLURM itself may drop the signal.
    """
    job = cluster.submit(
        "--time=10", "slurm/dcr.sh", DCR_DS_PYTHON=in_place_of_python("exec sleep 100"), **NO_PREFLIGHT
    )
    cluster.wait(job, lambda: bool(list(Path("/tmp").glob(f"dcr-ds-{job}-*"))), 30)
    time.sleep(seconds)
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    cluster.wait(job, lambda: "; requeued" in cluster.log(job), 30)
    cluster.call("scancel", job)


def test_a_job_without_progress_is_not_requeued_for_ever(cluster, in_place_of_python):
    python = in_place_of_python("echo refine step-00000005 >$DCR_DS_ATTEMPT/progress; exit 75")
    job = cluster.submit("--time=10", "slurm/dcr.sh", DCR_DS_PYTHON=python, DCR_DS_MAX_IDLE="1", **NO_PREFLIGHT)
    described = cluster.end(job, "FAILED", 120)
    assert (described["ExitCode"], described["Restarts"]) == ("1:0", "2")
    assert "not requeued: no progress in 2 attempts (DCR_DS_MAX_IDLE): refine step-00000005" in cluster.log(job)


def test_progress_resets_the_count_of_failures(cluster, in_place_of_python):
    """A failure in each attempt, at most one failure without progress, and a new checkpoint in each attempt."""
    fail = "echo refine $SLURM_RESTART_COUNT >$DCR_DS_ATTEMPT/progress; exit $((${SLURM_RESTART_COUNT:-0} < 2 ? 3 : 0))"
    job = cluster.submit("--time=10", "slurm/dcr.sh", DCR_DS_PYTHON=in_place_of_python(fail), DCR_DS_MAX_FAULTS="1",
                         DCR_DS_MAX_IDLE="0", **NO_PREFLIGHT)  # fmt: skip
    assert cluster.end(job, "COMPLETED", 120)["Restarts"] == "2"


def test_failures_without_progress_are_counted(cluster, in_place_of_python):
    job = cluster.submit("--time=10", "slurm/dcr.sh", DCR_DS_PYTHON=in_place_of_python("exit 3"), DCR_DS_MAX_FAULTS="1",
                         **NO_PREFLIGHT)  # fmt: skip
    described = cluster.end(job, "FAILED", 120)
    assert (described["ExitCode"], described["Restarts"]) == ("3:0", "1")
    assert "given up after 1 requeues for failures" in cluster.log(job)


def test_a_time_limit_shorter_than_the_lead_of_the_signal_is_refused(cluster, in_place_of_python):
    job = cluster.submit("--time=4", "slurm/dcr.sh", DCR_DS_PYTHON=in_place_of_python("exec sleep 200"), **NO_PREFLIGHT)
    described = cluster.end(job, "FAILED", 100)
    assert (described["ExitCode"], described["Restarts"]) == ("2:0", "0")
    assert "the time limit of 240 seconds is not longer than the 300 seconds before its end" in cluster.log(job)


def test_a_node_that_never_reports_the_end_of_its_ranks_does_not_hold_the_job(cluster, in_place_of_python):
    """The slurmstepd of one node, the parent of its rank, is killed; all ranks end well."""
    end = "[[ $RANK == 0 ]] || kill -9 $PPID; sleep 2"
    job = cluster.submit("--nodes=2", "--time=10", "slurm/dcr.sh", DCR_DS_PYTHON=in_place_of_python(end),
                         DCR_DS_END_SECONDS="4", DCR_DS_MAX_FAULTS="0", **NO_PREFLIGHT)  # fmt: skip
    ends = ("COMPLETED", "FAILED")
    cluster.wait(job, lambda: cluster.job(job)["JobState"] in ends, 60)
    print(cluster.log(job))
    assert cluster.job(job)["JobState"] == "COMPLETED"


def test_a_chain_of_which_a_later_job_is_refused_is_cancelled(cluster, recipe):
    done = refused(cluster, "slurm/pipeline.sh", recipe, DCR_DS_SBATCH_ALIGN="--partition=none")
    assert "invalid partition specified: none" in done.stderr and "error: sbatch refused a job" in done.stderr
    refine = done.stdout.splitlines()[0].removeprefix("refine: job ")
    cluster.end(refine, "CANCELLED", 30)
    assert f"cancelled job {refine}, since not all jobs could be submitted" in done.stdout


def test_a_sweep_whose_report_is_refused_is_cancelled(cluster, recipe):
    done = refused(cluster, "slurm/sweep.sh", recipe, "--seed", "0,1", DCR_DS_SBATCH_REPORT="--partition=none")
    array = next(line for line in done.stdout.splitlines() if line.startswith("sweep of 2 runs")).split()[-1]
    assert f"cancelled job {array}" in done.stdout
    cluster.wait(array, lambda: not cluster.call("squeue", "--noheader", f"--jobs={array}").strip(), 30)


def refused(cluster, *command: str, **environment: str) -> subprocess.CompletedProcess:
    environment = cluster.environment | environment
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    return done
