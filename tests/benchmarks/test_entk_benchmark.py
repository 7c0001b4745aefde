"""The eNTK benchmark runs from end to end, and all providers compute the same kernel; how fast it is, is no test."""

import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_providers_agree(monkeypatch, tmp_path):
    """In this process, as the start of eight others would take most of the time."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import entk

    path = tmp_path / "rows.csv"
    for starter in ("in_new_process", "in_lean_process"):
        monkeypatch.setattr(entk, starter, lambda function, *arguments: function(*arguments))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["entk.py", "--tiny", "--csv", str(path)])
    entk.main()
    with path.open(newline="") as stream:
        rows = {row["provider"]: row for row in csv.DictReader(stream)}
    assert all(row["outcome"] == "ok" and row["commit"] and float(row["cpu_seconds"]) > 0 for row in rows.values())
    assert float(rows["jvp"]["error"]) < 1e-4 and float(rows["jacobian"]["error"]) < 1e-4
    assert 0 < float(rows["difference"]["error"]) < 0.1
