"""The log-odds benchmark runs from end to end and writes a well-formed row; its times are not tested."""

import csv
import subprocess
import sys
from pathlib import Path

from tiny import one_thread_environment

ROOT = Path(__file__).resolve().parents[2]


def test_a_row_with_the_ratio_is_written(tmp_path):
    path = tmp_path / "rows.csv"
    done = subprocess.run(
        [sys.executable, "benchmarks/log_odds.py", "--tiny", "--rounds", "1", "--csv", path],
        cwd=ROOT, env=one_thread_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with path.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["model"], row["prompts"]) == ("tiny", "6") and float(row["ratio"]) > 0
    assert 0 <= float(row["first_token_impurity"]) < 1
