"""Runs the scripts in benchmarks/ and reads the rows they write."""

import csv
import subprocess
import sys
from pathlib import Path

from processes import ROOT, run_command
from tiny import one_thread_environment

FOLDER = ROOT / "benchmarks"


def run_python(*arguments) -> subprocess.CompletedProcess:
    """Run Python in the root of the repository and capture its output."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=one_thread_environment(), capture_output=True, text=True, timeout=240)


def rows_of(path: Path, *arguments) -> list[dict[str, str]]:
    """Run Python with `--csv path`, which must succeed, and read the rows that it wrote."""
    run_command(sys.executable, *arguments, "--csv", path)
    return read_rows(path)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
