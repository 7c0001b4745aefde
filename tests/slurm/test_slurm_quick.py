"""The one test of SLURM that every change must pass: stopped by USR1 on two nodes, requeued, done, and nothing lost."""

import json

import pytest


@pytest.mark.timeout(900)
def test_stopped_job_is_requeued_and_resumes_by_itself(cluster, recipe, rows, tmp_path):
    job = cluster.submit("--nodes=2", "--time=10", "slurm/dcr.sh", recipe, "--output", str(tmp_path))
    run = tmp_path / "tiny"
    metrics = run / "refine/metrics.jsonl"
    cluster.wait(job, lambda: len(rows(metrics)) >= 3, 400)
    cluster.call("scancel", "--signal=USR1", job)
    described = cluster.end(job, "COMPLETED", 400)
    assert (described["Restarts"], described["ExitCode"]) == ("1", "0:0")
    log = "\n".join(line for line in cluster.log(job).splitlines() if not line.startswith("refine "))
    assert "stopped and saved; requeued" in log and "resuming from" in log, log
    assert [row["step"] for row in rows(metrics)] == list(range(1, 101))
    assert (run / "evaluate/aligned/asked/scores.json").is_file() and (run / "report/report.html").is_file()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["slurm"] == {"job": job, "nodes": "node[1-2]", "restarts": "1"}
    assert environment["world_size"] == 2
