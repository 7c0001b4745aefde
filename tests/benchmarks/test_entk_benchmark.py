"""The eNTK benchmark runs, and all providers compute the same kernel; their speed is not tested."""

from scripts import rows_of

# All providers run in one process, as starting eight would take most of the time. It is not the process of the tests:
# once ZeRO-3 has run there, DeepSpeed's linear layers stay in use, and they have no forward-mode derivative.
SCRIPT = """
import sys
sys.path.insert(0, "benchmarks")
import entk
for name in ("in_new_process", "in_lean_process"):
    setattr(entk, name, lambda function, *arguments: function(*arguments))
entk.main()
"""


def test_providers_agree(tmp_path):
    rows = {row["provider"]: row for row in rows_of(tmp_path / "rows.csv", "-c", SCRIPT, "--tiny")}
    assert all(row["outcome"] == "ok" and row["commit"] and float(row["cpu_seconds"]) > 0 for row in rows.values())
    assert float(rows["jvp"]["error"]) < 1e-4 and float(rows["jacobian"]["error"]) < 1e-4
    assert 0 < float(rows["difference"]["error"]) < 0.1
