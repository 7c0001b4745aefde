"""The Python API, which `import dcr_ds` offers to scripts and notebooks. torch is first imported by `train`."""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcr_ds.engine.launcher import LAUNCHER_VARIABLES, set_environment
from dcr_ds.errors import UserError, write_errors_as_user_errors
from dcr_ds.files import read_whole_rows
from dcr_ds.recipe import Recipe, change_recipe, find_recipe
from dcr_ds.recipe import load_recipe as _load_recipe
from dcr_ds.recipe.layout import TRAINED_STAGES, RunFolder, StageFolder, TrainedStage

if TYPE_CHECKING:
    from pandas import DataFrame

SCORES = ("wanted", "judge", "metric", "value", "low", "high", "n", "unparsed", "degenerate")


def load_recipe(name: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe.

    Args:
        name: the name of a shipped recipe (`dcr-ds recipes` lists them), or the path of a YAML file.
        changes: new values by dotted field name, as for `change_recipe`.

    Raises:
        UserError: there is no such recipe, or a field is wrong.
    """
    recipe = _load_recipe(find_recipe(os.fspath(name)))
    return change_recipe(recipe, changes) if changes else recipe


def train(recipe: Recipe, redo: str | None = None) -> "Run":
    """Run the stages of a recipe that are not done yet, in this process, and write its report.

    A run that was interrupted resumes from its last checkpoint. Under a launcher (torchrun, deepspeed, srun), all ranks
    call this function. Progress goes to stderr. Call it from the main thread, which receives signals.

    Args:
        redo: a stage to run again with the stages after it (refine, align, evaluate), or all.

    Raises:
        TypeError: `recipe` is not a Recipe.
        UserError: the input cannot be used; the message says what to change.
        Stopped: the run was interrupted (Ctrl-C) and its state is saved; the same call resumes it.
        Diverged: the loss is not finite.
        RefinementFailed: stage 1 failed, and refine.on_failure is stop.
        ServerFailed: a server that the evaluation started (`evaluate.engine`) ended while it was used.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"train takes the Recipe that load_recipe returns, this is {recipe!r:.80}")
    if threading.current_thread() is not threading.main_thread():
        raise UserError("train: call it from the main thread, which receives the signals that stop and save a run")
    with _launch_environment(), write_errors_as_user_errors(recipe.folder):
        set_environment()
        if "torch" in sys.modules:  # it has read OMP_NUM_THREADS before `set_environment` set it
            sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        from dcr_ds.run.pipeline import run

        run(recipe, redo=redo)
    return Run(recipe.folder)


class Run:
    """A run folder: what was trained and measured, read from its files."""

    def __init__(self, folder: str | os.PathLike[str]):
        """Open `<output>/<name>` of a recipe.

        Raises:
            UserError: it is not a run folder.
        """
        self.folder = Path(folder)
        self._files = RunFolder(self.folder)
        if not self._files.is_run:
            raise UserError(f"{self.folder}: not a run folder: it has no recipe.yaml")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run, with every `auto` resolved."""
        return _load_recipe(str(self._files.recipe))

    @property
    def report(self) -> Path:
        """The report in Markdown."""
        return self._files.report

    def model(self, stage: TrainedStage = "align") -> Path:
        """The folder of the model that a stage trained, for `transformers` and vLLM.

        Raises:
            UserError: there is no such stage, or it has no model (yet).
        """
        folder = self._stage(stage).model
        if not folder.is_dir():
            raise UserError(f"{folder}: the run has no model of {stage}: the stage is not done, or not in its recipe")
        return folder

    def metrics(self, stage: TrainedStage = "align") -> list[dict[str, Any]]:
        """One row per training step of a stage: loss, learning rate, tokens, seconds, …; none before its first step.

        Raises:
            UserError: there is no such stage.
        """
        return read_whole_rows(self._stage(stage).metrics)

    def _stage(self, name: str) -> StageFolder:
        if name not in TRAINED_STAGES:
            raise UserError(f"{self.folder}: {name!r} trains no model; stages that do: {', '.join(TRAINED_STAGES)}")
        return self._files.stage(name)

    def results(self) -> list[dict[str, Any]]:
        """One row per model and benchmark: the rate of wanted answers with its 95 % interval and number of prompts.

        The loss on general conversations is a row, too, with the benchmark `general`.
        """
        from dcr_ds.report.numbers.read import read_run

        rows: list[dict[str, Any]] = []
        for model, measured in read_run(self.folder).models.items():
            for name, benchmark in measured.benchmarks.items():
                scores = {field: benchmark.score[field] for field in SCORES}
                rows.append({"model": model, "benchmark": name, **scores})
            if measured.general_loss is not None:
                loss = {"metric": "loss", "value": measured.general_loss["loss"], "n": measured.general_loss["n"]}
                rows.append({"model": model, "benchmark": "general", **dict.fromkeys(SCORES), **loss})
        return rows

    def table(self) -> "DataFrame":
        """`results()` as a pandas DataFrame."""
        from pandas import DataFrame

        return DataFrame(self.results(), columns=["model", "benchmark", *SCORES])


@contextmanager
def _launch_environment() -> Iterator[None]:
    """Restore the variables that describe the process group, so that they do not outlive a run in a notebook."""
    before = {name: os.environ.get(name) for name in LAUNCHER_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
