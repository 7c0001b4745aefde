"""Metrics of a training stage: a row per step in metrics.jsonl, and console lines. Rank 0 writes."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.memory import peak_memory_bytes
from dcr_ds.engine.trackers import open_trackers
from dcr_ds.files import json_line, read_whole_rows, without_nan, write_atomically
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import StageFolder

# metrics of a stage that the console line shows
SHOWN = ("gap", "auc", "drift", "margin", "accuracy", "kl", "refused_seemingly_toxic", "refused_toxic")


class MetricsLog:
    """Writes the rows of one stage; when it is resumed, rows after the resumed step are dropped first."""

    def __init__(
        self, stage: str, folder: StageFolder, first_step: int, total_steps: int, recipe: Recipe, ranks: Ranks
    ):
        self.stage, self.total_steps, self.log_every, self.ranks = stage, total_steps, recipe.log_every, ranks
        self.first_step, self.started, self.last = first_step, time.monotonic(), time.monotonic()
        self.bar = tqdm(
            total=total_steps,
            initial=first_step,
            desc=stage,
            unit="step",
            disable=not (ranks.is_main and sys.stderr.isatty()),
        )
        self.stream = _reopen(folder.metrics, first_step) if ranks.is_main else None
        self.trackers = open_trackers(recipe, stage, folder, read_rows(folder.metrics)) if ranks.is_main else []

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
        if self.stream is not None:
            self.stream.close()
        for tracker in self.trackers:
            tracker.close()

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a row {step, samples, step_tokens, loss, …} with seconds, tokens per second and memory added."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        row |= {
            "seconds": round(seconds, 4),
            "tokens_per_second": round(row.pop("step_tokens") / seconds, 1),
            "memory_bytes": peak_memory_bytes(self.ranks.device),
        }
        if self.stream is None:  # not rank 0
            return row
        self.stream.write(json_line(without_nan(row)))
        self.stream.flush()
        for tracker in self.trackers:
            tracker.log(row)
        self.bar.update(1)
        if row["step"] % self.log_every == 0 or row["step"] == self.total_steps:
            self.bar.write(self._line(row), file=sys.stdout)
            sys.stdout.flush()
        return row

    def to_disk(self) -> None:
        """Flush the rows to disk, as a checkpoint of the same step is."""
        if self.stream is not None:
            os.fsync(self.stream.fileno())

    def _line(self, row: dict[str, Any]) -> str:
        done = row["step"] - self.first_step
        remaining = (time.monotonic() - self.started) / done * (self.total_steps - row["step"])
        line = (
            f"{self.stage} {row['step']}/{self.total_steps}  loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  "
            f"grad norm {row['grad_norm']:.3f}  {row['tokens_per_second']:.0f} tokens/s  "
            f"{row['memory_bytes'] / 2**30:.2f} GiB  left {int(remaining) // 60}:{int(remaining) % 60:02d}"
        )
        return line + "".join(f"  {name} {row[name]:.3f}" for name in SHOWN if row.get(name) is not None)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON Lines file; an incomplete last line, left by a crash, is skipped."""
    if not path.is_file():
        return []
    rows = read_whole_rows(path, {"step": int})
    has_line_break = not path.read_bytes().endswith(b"}")
    return rows if has_line_break else rows[:-1]


def _reopen(path: Path, first_step: int):
    rows = [row for row in read_rows(path) if row["step"] <= first_step]
    if missing := first_step - len({row["step"] for row in rows}):
        print(
            f"WARNING: {path}: {missing} of the {first_step} steps before this attempt have no row there any more: "
            "curves that are made from it have gaps; the training is not affected",
            file=sys.stderr,
        )
    lines = [json_line(without_nan(row)) for row in rows]
    write_atomically(path, "".join(lines))  # now, as the first step may never end
    return path.open("a", encoding="utf-8")
