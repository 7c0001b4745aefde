"""Faults of a forked run leave its results as they are, and their rows become the table of a page."""

import csv
import subprocess
import sys

import pytest
from processes import ROOT
from tiny import one_thread_environment


def run(*arguments: object) -> None:
    command = [sys.executable, "benchmarks/faults.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=one_thread_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_rows_of_faults_become_a_table(tmp_path):
    rows_file, page = tmp_path / "rows.csv", tmp_path / "page.md"
    run("--launcher", "fork", "--faults", 2, "--only", "model,between", "--csv", rows_file)
    with rows_file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 and {row["same_result"] for row in rows} == {"True"}
    marks = ("<!-- begin: benchmarks/faults.py --table -->", "<!-- end: benchmarks/faults.py --table -->")
    page.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    run("--table", page, "--csv", rows_file)
    text = page.read_text()
    assert text.startswith(f"before\n{marks[0]}\n2 faults, 0 of them in runs that a launcher started")
    assert text.endswith(f"\n{marks[1]}\nafter\n") and "old" not in text
    assert "2 of 2 in runs with the result of the undisturbed one" in text
