"""The eNTK benchmark runs from end to end, and all providers compute the same kernel; how fast it is, is no test."""

import csv
import subprocess
import sys
from pathlib import Path

from tiny import one_thread_environment

ROOT = Path(__file__).resolve().parents[2]
# One process for all providers, as the start of eight would take most of the time; not this one: once ZeRO-3 ran in a
# process, DeepSpeed's linear layers stay there, which have no forward-mode derivative.
SCRIPT = """
import sys
sys.path.insert(0, "benchmarks")
import entk
for starter in ("in_new_process", "in_lean_process"):
    setattr(entk, starter, lambda function, *arguments: function(*arguments))
entk.main()
"""


def test_providers_agree(tmp_path):
    path = tmp_path / "rows.csv"
    command = [sys.executable, "-c", SCRIPT, "--tiny", "--csv", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=one_thread_environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with path.open(newline="") as stream:
        rows = {row["provider"]: row for row in csv.DictReader(stream)}
    assert all(row["outcome"] == "ok" and row["commit"] and float(row["cpu_seconds"]) > 0 for row in rows.values())
    assert float(rows["jvp"]["error"]) < 1e-4 and float(rows["jacobian"]["error"]) < 1e-4
    assert 0 < float(rows["difference"]["error"]) < 0.1
