"""The table of benchmarks/faults.py: its rows by kind of fault, written between two marks of a page."""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import median

from marks import replace_marked

NAMES = {
    "rank": "kill -9 of one rank",
    "all": "kill -9 of all processes",
    "launcher": "kill -9 of the launcher alone",
    "save": "kill -9 of one rank or of all, at a random byte of a checkpoint being written",
    "truncate": "kill, then a file of the newest checkpoint truncated at a random byte",
    "bit": "kill, then one bit of a file of the newest checkpoint flipped",
    "disk": "the disk filled until less than a checkpoint is free",
    "freeze": "SIGSTOP of one rank",
    "between": "kill -9 between two stages",
    "export": "kill -9 in the export of a stage",
    "generation": "kill -9 in the generation of answers",
    "judging": "kill -9 in the judging",
    "report": "kill -9 in the report",
    "model": "kill, then other weights in `model.source`: refused; resumed with the right ones",
    "data": "kill, then a training set with other rows: refused; resumed with the right ones",
    "ranks": "kill, then one rank less (3 to 2 to 1)",
    "copy": "kill, then the run folder copied to another path",
    "clock": "kill, then files with times up to 20 years off, and a deadline in the past",
}


def write_table(rows_file: Path, page: Path) -> None:
    """Replace what is between the marks of a page by the table of a file of rows."""
    replace_marked(page, "benchmarks/faults.py --table", table(rows_file))


def table(rows_file: Path) -> str:
    with rows_file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    by_kind: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_kind[row["fault"]].append(row)
    lines = [
        "| fault | times | seconds until no process was left, median (most) | same result as undisturbed |",
        "|---|---|---|---|",
    ]
    for kind, name in NAMES.items():
        if kind in by_kind:
            lines.append(f"| {name} | {len(by_kind[kind])} | {_seconds(by_kind[kind])} | {_same(by_kind[kind])} |")
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    launched = sum(row["launcher"] != "fork" for row in rows)
    return "\n".join(
        [
            f"{len(rows)} faults, {launched} of them in runs that a launcher started, at commit {commits}; "
            f"{_same(rows)} in runs with the result of the undisturbed one.",
            "",
            *lines,
        ]
    )


def _seconds(rows: list[dict[str, str]]) -> str:
    seconds = [float(row["seconds_to_end"]) for row in rows if row["launcher"] != "fork" and row["seconds_to_end"]]
    return f"{median(seconds):.1f} ({max(seconds):.1f})" if seconds else ""


def _same(rows: list[dict[str, str]]) -> str:
    return f"{sum(row['same_result'] == 'True' for row in rows)} of {len(rows)}"
