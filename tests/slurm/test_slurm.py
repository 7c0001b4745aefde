"""What clusters do to a job, done to one on a private SLURM: time limits, dead nodes and ranks, bad nodes, mistakes.

Each test runs real jobs of slurm/ on two of three virtual nodes (gloo, a tiny model, ZeRO-3).
"""

import os
import signal
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)
ALL_STEPS = list(range(1, 101))


def steps(rows: list[dict]) -> list[int]:
    return [row["step"] for row in rows]


def ranks_of(run: Path) -> list[int]:
    """Processes that train the run in a folder, without their children, which begin with the same words."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if b"train.py" in words and str(run.parent).encode() in words and b"python" in words[0]:
                found[int(entry.name)] = int(parent)
    return [process for process, parent in found.items() if parent not in found]


def test_job_is_signalled_before_its_time_limit_and_resumes(cluster, recipe, rows, tmp_path):
    """SLURM sends USR1 between 30 and 90 s after the start of two minutes; the stage is longer than that."""
    job = cluster.submit("--nodes=2", "--time=2", "--signal=B:USR1@30", "slurm/dcr.sh", recipe, "--output",
                         str(tmp_path), "--refine.max_steps", "100000")  # fmt: skip
    metrics = tmp_path / "tiny/refine/metrics.jsonl"
    cluster.wait(job, lambda: "requeued" in cluster.log(job), 400)
    assert "stopped and saved; requeued" in cluster.log(job)
    saved = max(steps(rows(metrics)))
    cluster.wait(job, lambda: max(steps(rows(metrics))) > saved, 400)
    cluster.wait(job, lambda: f"checkpoints/step-{saved:08d}" in cluster.log(job), 30)  # the log comes a little later
    assert steps(rows(metrics)) == list(range(1, max(steps(rows(metrics))) + 1))
    cluster.call("scancel", job)
    cluster.end(job, "CANCELLED", 60)


def test_cancelled_job_saves_and_stays_cancelled(cluster, recipe, rows, tmp_path):
    job = cluster.submit("--nodes=2", "--time=10", "slurm/dcr.sh", recipe, "--output", str(tmp_path))
    metrics = tmp_path / "tiny/refine/metrics.jsonl"
    cluster.wait(job, lambda: len(rows(metrics)) >= 3, 400)
    cluster.call("scancel", job)
    assert cluster.end(job, "CANCELLED", 60)["Restarts"] == "0"
    assert "not requeued" in cluster.log(job)
    cluster.wait(job, lambda: (tmp_path / "tiny/refine/checkpoints/latest").is_file(), 30)


def test_dead_rank_ends_the_job_on_all_nodes_and_it_resumes(cluster, recipe, rows, tmp_path):
    job = cluster.submit("--nodes=2", "--time=10", "slurm/dcr.sh", recipe, "--output", str(tmp_path))
    metrics = tmp_path / "tiny/refine/metrics.jsonl"
    cluster.wait(job, lambda: len(rows(metrics)) >= 7, 400)
    os.kill(max(ranks_of(tmp_path / "tiny")), signal.SIGKILL)
    assert cluster.end(job, "COMPLETED", 600)["Restarts"] == "1"
    assert "a rank failed (code 1" in cluster.log(job)  # 137, or 143 of a rank that srun terminated
    assert steps(rows(metrics)) == ALL_STEPS
    assert "refine step-" in (cluster.attempt(job, 1) / "progress").read_text()


def test_faults_are_not_repeated_for_ever(cluster, recipe, rows, tmp_path):
    job = cluster.submit("--nodes=2", "--time=10", "slurm/dcr.sh", recipe, "--output", str(tmp_path),
                         DCR_DS_MAX_FAULTS="0")  # fmt: skip
    cluster.wait(job, lambda: len(rows(tmp_path / "tiny/refine/metrics.jsonl")) >= 2, 400)
    os.kill(max(ranks_of(tmp_path / "tiny")), signal.SIGKILL)
    described = cluster.end(job, "FAILED", 100)
    assert (described["Restarts"], described["ExitCode"]) in (("0", "137:0"), ("0", "143:0"))
    assert "given up after 0 requeues" in cluster.log(job)


def test_node_that_goes_down_is_replaced_and_the_job_resumes(cluster, recipe, rows, tmp_path):
    job = cluster.submit("--nodes=2", "--time=10", "slurm/dcr.sh", recipe, "--output", str(tmp_path))
    metrics = tmp_path / "tiny/refine/metrics.jsonl"
    cluster.wait(job, lambda: len(rows(metrics)) >= 7, 400)
    node = cluster.call("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()[1]
    cluster.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        described = cluster.end(job, "COMPLETED", 600)
    finally:
        cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert (described["Restarts"], described["NumNodes"]) == ("1", "2")
    assert node not in cluster.call("scontrol", "show", "hostnames", described["NodeList"]).split()
    assert steps(rows(metrics)) == ALL_STEPS


def test_bad_node_is_named_and_left_out(cluster, recipe, rows, tmp_path):
    """Python does not start on the second node of the job; the job starts again without it."""
    python, bad = tmp_path / "python", tmp_path / "bad"
    choose = f'[[ -f {bad} || $SLURM_PROCID != 1 ]] || echo "$SLURMD_NODENAME" >{bad}'
    fail = f"[[ ! -f {bad} || $SLURMD_NODENAME != $(<{bad}) ]] || exit 127"
    python.write_text(f'#!/bin/bash\n{choose}\n{fail}\nexec python "$@"\n')
    python.chmod(0o755)
    job = cluster.submit("--nodes=2", "--time=10", "slurm/dcr.sh", recipe, "--output", str(tmp_path),
                         DCR_DS_PYTHON=str(python), DCR_DS_PREFLIGHT_SECONDS="30")  # fmt: skip
    described, node = cluster.end(job, "COMPLETED", 600), bad.read_text().strip()
    assert (described["Restarts"], described["ExcNodeList"], described["NumNodes"]) == ("1", node, "2")
    assert f"preflight: {node}: no answer" in cluster.log(job) and f"requeued without {node}" in cluster.log(job)
    assert node not in cluster.call("scontrol", "show", "hostnames", described["NodeList"]).split()
    assert steps(rows(tmp_path / "tiny/refine/metrics.jsonl")) == ALL_STEPS


def test_a_mistake_in_the_recipe_ends_the_job_with_2_and_one_message(cluster, recipe, tmp_path):
    job = cluster.submit("--nodes=2", "--time=10", "slurm/dcr.sh", recipe, "--output", str(tmp_path), "--refine.layr",
                         "1")  # fmt: skip
    described = cluster.end(job, "FAILED", 100)
    assert (described["Restarts"], described["ExitCode"]) == ("0", "2:0")
    assert cluster.log(job).count("\nerror: ") == 1 and "Did you mean refine.layer" in cluster.log(job)


def test_chain_runs_stage_after_stage_each_of_its_own_size(cluster, recipe, tmp_path):
    sizes = {"DCR_DS_SBATCH_REFINE": "--nodes=2 --time=10", "DCR_DS_SBATCH_EVALUATE": "--nodes=2 --time=10"}
    said = cluster.call("slurm/pipeline.sh", recipe, "--output", str(tmp_path), "--refine.max_steps", "5", **sizes)
    jobs = {line.split(":")[0]: line.split()[-1] for line in said.splitlines()}
    assert list(jobs) == ["refine", "align", "evaluate"]
    assert cluster.job(jobs["evaluate"])["Dependency"].startswith(f"afterok:{jobs['align']}")
    described = [cluster.end(job, "COMPLETED", 600) for job in jobs.values()]
    assert [job["NumNodes"] for job in described] == ["2", "1", "2"]
    ends = [job["EndTime"] for job in described]
    assert ends == sorted(ends)
    run = tmp_path / "tiny"
    assert all((run / stage / "summary.json").is_file() for stage in ("refine", "align"))
    assert (run / "evaluate/aligned/asked/scores.json").is_file()


def test_chain_ends_where_a_stage_fails(cluster, recipe, tmp_path):
    """The model has two blocks; that is found in the job, which reads the model's files."""
    said = cluster.call("slurm/pipeline.sh", recipe, "--output", str(tmp_path), "--refine.layer", "9")
    refine, align, evaluate = (line.split()[-1] for line in said.splitlines())
    assert cluster.end(refine, "FAILED", 100)["ExitCode"] == "2:0"
    assert "refine.layer: 9 is out of range" in cluster.log(refine)
    cluster.end(align, "CANCELLED", 60)
    cluster.end(evaluate, "CANCELLED", 60)


def test_sweep_runs_its_array_and_ends_in_one_table(cluster, recipe, tmp_path):
    said = cluster.call("slurm/sweep.sh", recipe, "--align.safe_ratio", "0.4,0.5", "--", "--refine.max_steps", "5",
                        "--output", str(tmp_path))  # fmt: skip
    table = next(line for line in said.splitlines() if line.startswith("table: job ")).split()[2].rstrip(",")
    cluster.end(table, "COMPLETED", 600)
    report = (tmp_path / "report.md").read_text()
    for ratio in ("0.4", "0.5"):
        assert (tmp_path / f"tiny-safe_ratio{ratio}/report/report.md").is_file()
        assert f"tiny-safe_ratio{ratio}" in report
