"""Trackers: where the metrics of a stage are shown, besides metrics.jsonl. Rank 0 alone writes to them.

A tracker works in a thread of its own, so that a slow or missing network delays no step, and its errors are one
warning: no tracker ends a run. When a stage is resumed, a tracker begins again with the rows of metrics.jsonl up to the
resumed step, so that no step occurs twice and every number is that of metrics.jsonl.

Nothing here imports torch or a tracker before one is used.
"""

import importlib.util
import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from dcr_ds.engine.tracker_packages import BACKENDS, Backend, TrackedRun
from dcr_ds.errors import UserError
from dcr_ds.files import read_object, write_json
from dcr_ds.recipe import Recipe, public_values
from dcr_ds.recipe.layout import RunFolder, StageFolder
from dcr_ds.recipe.urls import mask_secrets

CLOSE_SECONDS = 60.0  # that a tracker has to send what is left when a stage ends
STAGES = ("align", "refine", "control")  # whose run in a tracker gets the report: the first that has one
_writing = threading.Lock()  # of trackers.json


def chosen(recipe: Recipe) -> list[str]:
    """The trackers of a recipe."""
    return list(dict.fromkeys([*recipe.track, *(["tensorboard"] if recipe.tensorboard else [])]))


def check_trackers(recipe: Recipe) -> None:
    """Raise UserError if the package of a tracker is not installed; before torch is imported."""
    for name in chosen(recipe):
        if importlib.util.find_spec(name) is None:
            extra = "track" if name == "tensorboard" else name
            raise UserError(f"track: {name}: the package is missing; pip install 'dcr-ds[{extra}]', or leave it out")


class Tracker:
    """One tracker, from its opening in its own thread on."""

    def __init__(self, name: str, open_backend: Callable[[], Backend]):
        self._name, self._open = name, open_backend
        self._tasks: SimpleQueue[Callable[[Backend], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of a row of metrics.jsonl."""
        step, values = row["step"], dict(row)
        self._add(lambda backend: backend.log(step, _numbers(values)))

    def attach(self, files: Sequence[Path]) -> None:
        """Add files to the run in the tracker."""
        self._add(lambda backend: backend.attach(files))

    def close(self) -> None:
        """Wait until everything is sent, at most CLOSE_SECONDS."""
        self._tasks.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"did not finish within {CLOSE_SECONDS:g} seconds")

    def _add(self, task: Callable[[Backend], None]) -> None:
        if self._thread.is_alive():
            self._tasks.put(task)

    def _work(self) -> None:
        try:
            backend = self._open()
            while (task := self._tasks.get()) is not None:
                task(backend)
            backend.close()
        except (Exception, SystemExit) as error:  # anything: packages raise exceptions of their own
            self._warn(str(error).strip().partition("\n")[0][:300] or type(error).__name__)

    def _warn(self, problem: str) -> None:
        text = f"WARNING: track: {self._name}: {mask_secrets(problem)}; the run continues without it"
        print(text, file=sys.stderr, flush=True)


def open_trackers(recipe: Recipe, stage: str, folder: StageFolder, rows: Sequence[Mapping[str, Any]]) -> list[Tracker]:
    """Open the trackers of a stage and send them the rows of its earlier attempts. Rank 0."""
    run = TrackedRun(recipe.name, stage, folder.folder, recipe.folder, public_values(recipe))
    trackers = [Tracker(name, _opener(name, run, folder, begin=True)) for name in chosen(recipe)]
    for tracker in trackers:
        for row in rows:
            tracker.log(row)
    return trackers


def attach_report(recipe: Recipe) -> None:
    """Add the report and the model cards to the run of the last stage in each tracker. Rank 0."""
    home = RunFolder(recipe.folder)
    cards = [home.stage(stage).model / "README.md" for stage in STAGES]
    files = [file for file in (home.report, home.report.with_suffix(".html"), *cards) if file.is_file()]
    trackers = []
    for name in chosen(recipe):
        stage = next((stage for stage in STAGES if name in read_object(home.stage(stage).trackers)), None)
        if stage is not None:
            folder = home.stage(stage)
            run = TrackedRun(recipe.name, stage, folder.folder, recipe.folder, {})
            trackers.append(Tracker(name, _opener(name, run, folder, begin=False)))
            trackers[-1].attach(files)
    for tracker in trackers:
        tracker.close()


def _opener(name: str, run: TrackedRun, folder: StageFolder, begin: bool) -> Callable[[], Backend]:
    """What opens a tracker: a new run in place of that of an earlier attempt, or the recorded one."""

    def open_backend() -> Backend:
        earlier = read_object(folder.trackers).get(name)
        if not begin:
            return BACKENDS[name].reopen(run, str(earlier))
        backend = BACKENDS[name].begin(run, earlier)
        with _writing:
            write_json(folder.trackers, read_object(folder.trackers) | {name: backend.id})
        return backend

    return open_backend


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, as metrics.jsonl has them: without those that are not finite."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
