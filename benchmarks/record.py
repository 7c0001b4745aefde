"""What a row of a benchmark says of its origin, and the file it is appended to."""

import csv
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def provenance(*packages: str) -> dict[str, str]:
    """Date, commit, and the versions of the packages that matter."""
    return {"date": date.today().isoformat(), "commit": commit()} | {name: version(name) for name in packages}


def commit() -> str:
    """The short commit, with +dirty where anything but the results differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + ("+dirty" if changed else "")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row, with a header where the file is new; a file of other columns is refused before it is touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as stream:
        stream.seek(0)
        header = next(csv.reader(stream), None)
        if header not in (None, list(row)):
            raise ValueError(f"{path} has other columns; name another file")
        writer = csv.DictWriter(stream, list(row))
        if header is None:
            writer.writeheader()
        writer.writerow({name: round(value, 9) if isinstance(value, float) else value for name, value in row.items()})
