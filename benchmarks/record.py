"""What the benchmarks report with: rows of CSV with their origin, numbers for tables, and common options."""

import argparse
import csv
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def provenance(*packages: str) -> dict[str, str]:
    """Date, commit, and the versions of the named packages (empty for a package that is not installed)."""
    return {"date": date.today().isoformat(), "commit": commit()} | {name: installed(name) for name in packages}


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The short commit hash, with +dirty if any file outside benchmarks/results differs from it.

    The environment variable COMMIT overrides it, for a copy of the tree without its git history.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    if name := os.environ.get("COMMIT"):
        return name
    try:
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row, after a header if the file is new. A file with other columns is an error and stays unchanged."""
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


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its floats rounded to four significant digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def option_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that most benchmarks have: --csv and --tiny."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--tiny", action="store_true", help="a small problem, to try the benchmark")
    return parser


def add_round_options(parser: argparse.ArgumentParser, repeats: int, seconds: float) -> None:
    """Options for benchmarks that time rounds of short calls on a chosen device."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=repeats, help="maximum number of rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=seconds, help="limit for all rounds (default: %(default)s)")


def check_round_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    check_device(parser, options)
    if min(options.threads, options.repeats) < 1:
        parser.error("--threads and --repeats: at least 1")


def check_device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU that torch can use; leave it out")


def whole_numbers(text: str) -> list[int]:
    if not all(word.isdecimal() and int(word) for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers above 0, separated by commas")
    return [int(word) for word in text.split(",")]


def one_or_more_of(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        if unknown := [word for word in text.split(",") if word not in choices]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(choices)}")
        return text.split(",")

    return names
