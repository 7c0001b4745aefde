"""The session of a training stage: what both stages do around the gradients of a step.

with Session("align", training, folder, started) as session:
    while session.step < total_steps:
        row = …                                  the gradients of the step
        session.take_step(row, sample_ids)       updates the weights; raises if loss or gradient are not finite
        session.log(row)
        session.save_or_stop(session.step == total_steps)
session.finish({…})
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from dcr_ds.engine.build import gradient_norm
from dcr_ds.engine.checkpoint.checkpoints import Checkpoints, remove_checkpoints
from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.engine.distributed import Ranks, decide_on_main, print_on_main
from dcr_ds.engine.memory import peak_memory_bytes
from dcr_ds.engine.metrics import MetricsLog
from dcr_ds.engine.profile import Profile
from dcr_ds.engine.snapshot import Snapshot
from dcr_ds.engine.watch.spikes import SpikeDetector
from dcr_ds.engine.watch.stop import StopFlag
from dcr_ds.errors import Diverged, Stopped, UserError
from dcr_ds.files import flush, read_json, without_nan, write_json
from dcr_ds.progress import heartbeat
from dcr_ds.recipe import Recipe
from dcr_ds.recipe.layout import CONTROL, StageFolder

NOT_IN_SUMMARY = ("recent_losses", "identity")
PARTS = ("measure_seconds", "retain_seconds")  # of a row; their sums are in the summary
MARGIN = 1.5
MARGIN_SECONDS = 5.0  # until the process has ended


class Training(Protocol):
    """What a session needs of the state of a stage."""

    engine: deepspeed.DeepSpeedEngine
    recipe: Recipe
    ranks: Ranks

    @property
    def total_steps(self) -> int: ...


class Session:
    """The steps of one stage, from its newest checkpoint on. All methods are called on all ranks.

    Attributes:
        step: optimizer steps taken, including those of earlier attempts.
        state: what is saved in each checkpoint next to the engine, and in summary.json; small and JSON-serialisable.
        is_new: no checkpoint was loaded; the loop adds its initial values to `state`.
    """

    def __init__(self, stage: str, training: Training, folder: StageFolder, started: float):
        """Load the newest checkpoint of the folder.

        Args:
            started: time.monotonic() when the stage began; the time before its first step is included.
        """
        self.recipe, self.engine, self.ranks = training.recipe, training.engine, training.ranks
        self.stage, self.folder, self.total_steps = stage, folder, training.total_steps
        self.label = CONTROL if folder.folder.name == CONTROL else stage  # the control runs the stage align
        self.section = getattr(self.recipe, stage)
        self.checkpoints = Checkpoints(self.engine, folder.checkpoints, self.recipe.checkpoint.keep, self.ranks)
        loaded = self.checkpoints.load_newest()
        self.is_new = loaded is None
        self.step, self.state = loaded or (0, {"tokens": 0, "seconds": 0.0})
        self._check_identity()
        self._started = started - self.state["seconds"]
        self._spikes = SpikeDetector(self.state)
        self._longest_step, self._boundary = 0.0, time.monotonic()
        self._measured = 0.0

    def __enter__(self) -> "Session":
        recipe = self.recipe
        with ExitStack() as opened:
            self._stop = opened.enter_context(StopFlag(self.ranks))
            log = MetricsLog(self.label, self.folder, self.step, self.total_steps, recipe, self.ranks)
            self._log = opened.enter_context(log)
            self._profile = opened.enter_context(Profile(recipe.profile_steps, self.engine, self.folder, self.ranks))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)
        self.checkpoints.close()

    def take_step(self, row: dict[str, Any], sample_ids: Sequence[str]) -> None:
        """Take the optimizer step for the accumulated gradients, and complete its row of metrics.

        Args:
            row: `loss` and `step_tokens`, both over all ranks, and the stage's own metrics.

        Raises:
            Diverged: the loss or its gradient is not finite; no weight was changed.
        """
        self._check_loss(row["loss"], sample_ids)
        row["learning_rate"] = self.engine.get_lr()[0]
        self.engine.step()
        norm = gradient_norm(self.engine)
        self._check_gradient(norm, row["loss"], sample_ids)
        self.step += 1
        heartbeat(f"{self.label} step {self.step}, {self.samples} samples")
        self.state["tokens"] += row["step_tokens"]
        self.state.setdefault("loss_first", row["loss"])
        self.state["loss_last"] = row["loss"]
        row |= {
            "grad_norm": norm,
            "step": self.step,
            "samples": self.samples,
            "tokens": self.state["tokens"],
        }

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the time of a measurement, for the next row and for the summary."""
        started = time.monotonic()
        yield
        self._measured += time.monotonic() - started

    def log(self, row: dict[str, Any]) -> None:
        """Write the row of the step just taken, with the seconds of its measurement and of its retain term, if any."""
        if self._measured:
            row["measure_seconds"], self._measured = round(self._measured, 4), 0.0
        for name in PARTS:
            if name in row:
                self.state[name] = round(self.state.get(name, 0.0) + row[name], 4)
        self._log.write(row)
        self._profile.step()

    def save_or_stop(self, is_last: bool, snapshot: Snapshot | None = None) -> None:
        """Save if a checkpoint is due, at the last step, if a stop was requested, or little time is left.

        The last step is saved so that an export that fails can be repeated without training again. Until a save has
        been measured, its time is an estimate that may be far too long. So the deadline is checked again after the
        save: the run stops only if another step and a save as long as this one do not fit.

        Args:
            snapshot: earlier weights that the checkpoint keeps as well.

        Raises:
            Stopped: a stop was requested, the state is saved, and this was not the last step.
        """
        self.state["seconds"] = time.monotonic() - self._started
        self._longest_step = max(self._longest_step, time.monotonic() - self._boundary)
        stopping = self._stop.agreed(self._seconds_needed())
        if stopping or is_last or self.step % self.recipe.checkpoint.every_steps == 0:
            self._log.to_disk()
            self.checkpoints.save(self.step, without_nan(self.state), snapshot)
        if stopping and not is_last:
            self.checkpoints.wait_until_saved()
            stopping = self._stop.agreed(self._seconds_needed())
        self._boundary = time.monotonic()  # the next step begins here; a save is not part of it
        if stopping and not is_last:
            raise Stopped(f"{self.label}: stopped at step {self.step}, saved in {self.checkpoints.folder}")

    def _check_identity(self) -> None:
        """Raise UserError if the checkpoint was saved by a stage with another identity, such as one of another run."""
        identity = decide_on_main(lambda: read_json(self.folder.identity), self.ranks)
        own = identity.get("sha256") if isinstance(identity, dict) else None
        saved = self.state.setdefault("identity", own)  # None: saved before identities were recorded
        if own and saved and own != saved:
            raise UserError(
                f"{self.checkpoints.path(self.step)}: saved by another {self.label}, with another recipe, model or "
                f"data; remove {self.checkpoints.folder}, or do the stage again with --redo"
            )

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which marks the stage as done, and remove its checkpoints.

        Raises:
            Stopped: a stop was requested during the last step; the stage is done.
        """
        self.checkpoints.wait_until_saved()
        summary = {name: value for name, value in self.state.items() if name not in NOT_IN_SUMMARY} | summary
        summary |= {
            "steps": self.step,
            "samples": self.samples,
            "wall_seconds": time.monotonic() - self._started,
            "peak_memory_bytes": peak_memory_bytes(self.ranks.device),
        }
        if self.ranks.is_main:
            for exported in self.folder.exports:
                for path in exported.rglob("*"):
                    heartbeat(f"{self.label}, flushing {path}")
                    flush(path)
            write_json(self.folder.summary, without_nan(summary))
            remove_checkpoints(self.checkpoints.folder)
        if self._stop.agreed(-math.inf):  # whatever the deadline: the next stage compares it with its own steps
            raise Stopped(f"{self.label}: stopped when it was done")

    @property
    def samples(self) -> int:
        return self.step * self.section.global_batch

    def _seconds_needed(self) -> float:
        """Seconds needed before a deadline: another step and a save, plus half of that. Only rank 0's value counts."""
        return MARGIN * (self._longest_step + self.checkpoints.expected_seconds) + MARGIN_SECONDS

    def _check_loss(self, loss: float, sample_ids: Sequence[str]) -> None:
        """Raise before the step is taken; the same on all ranks, since the loss is over all of them."""
        step, reaction = self.step + 1, self.recipe.watchdog.loss_spike
        samples, note = self._samples_and_checkpoints(sample_ids)
        if not math.isfinite(loss):
            raise Diverged(
                f"{self.label}: the loss is {loss} at step {step}; no weight was changed by it. {samples}. {note}; "
                f"lower {self.stage}.learning_rate, or check the data"
            )
        usual = self._spikes.note(loss)
        if usual is None or reaction == "off":
            return
        message = f"{self.label}: the loss jumps to {loss:.4g} at step {step}; recent losses are around {usual:.4g}"
        if reaction == "stop":
            raise Diverged(
                f"{message}; no weight was changed by it. {samples}. {note}; lower {self.stage}.learning_rate, look at "
                "the data, or continue past it with --watchdog.loss_spike warn"
            )
        print_on_main(self.ranks, f"{message}. {samples}")

    def _check_gradient(self, norm: float, loss: float, sample_ids: Sequence[str]) -> None:
        """Raise if the step was skipped for its gradient; the same on all ranks, since the norm is over all of them."""
        if math.isfinite(norm) and norm >= 0:  # some optimizers of DeepSpeed report -1
            return
        samples, note = self._samples_and_checkpoints(sample_ids)
        raise Diverged(
            f"{self.label}: the gradient is not finite at step {self.step + 1} (norm {norm}), though the loss is "
            f"{loss:.4g}; no weight was changed by it. {samples}. {note}; lower {self.stage}.learning_rate, check the "
            "data, or look for very large weights in the model"
        )

    def _samples_and_checkpoints(self, sample_ids: Sequence[str]) -> tuple[str, str]:
        """What each message about a bad step says."""
        samples = f"Samples of the step: {', '.join(sample_ids)}"
        return samples, f"Checkpoints before it are kept in {self.checkpoints.folder}"
