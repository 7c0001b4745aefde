"""The packages behind trackers: TensorBoard, Weights & Biases, trackio and MLflow, each through the same few calls.

No package gets an environment, a command line, code or a key of this process to write down; the recipe is sent with the
secrets of its URLs masked. Where a tracker writes and with which key it logs in is set by its own variables.
"""

import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

PROJECT = "dcr-ds"


class TrackedRun(NamedTuple):
    """What a tracker shows: a stage of a run."""

    name: str
    stage: str
    folder: Path  # of the stage
    home: Path  # of the run
    recipe: dict[str, Any]


class Backend(Protocol):
    """A run in a tracker.

    Each class below opens one with `begin`, a new and empty run in place of that of an earlier attempt, or with
    `reopen`, the run with a known id.
    """

    @property
    def id(self) -> str: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def attach(self, files: Sequence[Path]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the stage."""

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        self.id, self._stage = "tensorboard", run.stage
        self._events = SummaryWriter(run.folder / "tensorboard")

    @classmethod
    def begin(cls, run: TrackedRun, earlier: str | None) -> "TensorBoard":
        shutil.rmtree(run.folder / "tensorboard", ignore_errors=True)
        return cls(run)

    @classmethod
    def reopen(cls, run: TrackedRun, known: str) -> "TensorBoard":
        return cls(run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(f"{self._stage}/{name}", value, step)

    def attach(self, files: Sequence[Path]) -> None:
        for file in files:
            if file.suffix == ".md":
                self._events.add_text(f"{file.parent.name}/{file.name}", file.read_text(encoding="utf-8"))

    def close(self) -> None:
        self._events.close()


class WeightsAndBiases:
    """A run of Weights & Biases per stage, with the run's name as its group; local files in `wandb/` of the stage."""

    def __init__(self, run: TrackedRun, known: str, resume: Literal["allow"] | None):
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.login(prompt=False):  # on a terminal it would ask for one
            raise RuntimeError("no key; set WANDB_API_KEY, or WANDB_MODE=offline")
        self.id, self._stage = known, run.stage
        settings = wandb.Settings(
            silent=True,
            console="off",  # the output, command line, code and environment are not copied
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=run.name,
            name=f"{run.name}/{run.stage}",
            job_type=run.stage,
            id=known,
            resume=resume,
            mode=mode,
            dir=run.folder,
            config=run.recipe or None,
            settings=settings,
        )

    @classmethod
    def begin(cls, run: TrackedRun, earlier: str | None) -> "WeightsAndBiases":
        for folder in (run.folder / "wandb").glob(f"*run-*-{earlier}"):  # not to be synced any more
            shutil.rmtree(folder, ignore_errors=True)
        began = cls(run, secrets.token_hex(4), None)
        if earlier and not began._run.offline:
            import wandb

            with suppress(Exception):  # a run that is left over is no reason to lose the new one
                wandb.Api().run(f"{began._run.entity}/{began._run.project}/{earlier}").delete()
        return began

    @classmethod
    def reopen(cls, run: TrackedRun, known: str) -> "WeightsAndBiases":
        return cls(run, known, "allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{self._stage}/{name}": value for name, value in values.items()}, step=step)

    def attach(self, files: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(f"report-{self.id}", type="report")
        for file in files:
            artifact.add_file(str(file), name=f"{file.parent.parent.name}/{file.name}")
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio per stage, in a project with the run's name; TRACKIO_SPACE_ID sends it to a Space."""

    def __init__(self, run: TrackedRun, known: str, resume: str):
        import trackio

        self.id, self._stage = known, run.stage
        self._run = trackio.init(
            project=run.name,
            name=known,
            group=run.stage,
            config=run.recipe or None,
            resume=resume,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    @classmethod
    def begin(cls, run: TrackedRun, earlier: str | None) -> "Trackio":
        began = cls(run, f"{run.stage}-{secrets.token_hex(4)}", "never")
        if earlier:
            import trackio

            with suppress(Exception):
                for other in trackio.Api().runs(run.name):
                    if other.name == earlier:
                        other.delete()
        return began

    @classmethod
    def reopen(cls, run: TrackedRun, known: str) -> "Trackio":
        return cls(run, known, "must")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{self._stage}/{name}": value for name, value in values.items()}, step=step)

    def attach(self, files: Sequence[Path]) -> None:
        import trackio

        artifact = trackio.Artifact(f"report-{self.id}", type="report")
        for file in files:
            artifact.add_file(str(file), name=f"{file.parent.parent.name}-{file.name}")
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow per stage, in an experiment with the run's name: at MLFLOW_TRACKING_URI, or in `mlflow/`."""

    def __init__(self, run: TrackedRun, known: str | None):
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        local = None if "MLFLOW_TRACKING_URI" in os.environ else (run.home / "mlflow").absolute().as_uri()
        self._client, self._stage = MlflowClient(tracking_uri=local), run.stage
        self.id = known or self._create(run)

    @classmethod
    def begin(cls, run: TrackedRun, earlier: str | None) -> "MLflow":
        began = cls(run, None)
        if earlier:
            with suppress(Exception):
                began._client.delete_run(earlier)
        return began

    @classmethod
    def reopen(cls, run: TrackedRun, known: str) -> "MLflow":
        return cls(run, known)

    def _create(self, run: TrackedRun) -> str:
        experiment = self._client.get_experiment_by_name(run.name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(run.name)
        created: str = self._client.create_run(number, run_name=run.stage).info.run_id
        self._client.log_dict(created, run.recipe, "recipe.json")
        return created

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(
            self.id, [Metric(f"{self._stage}/{name}", float(value), now, step) for name, value in values.items()]
        )

    def attach(self, files: Sequence[Path]) -> None:
        for file in files:
            self._client.log_artifact(self.id, str(file), f"report/{file.parent.parent.name}")

    def close(self) -> None:
        self._client.set_terminated(self.id)


BACKENDS: dict[str, type[TensorBoard] | type[WeightsAndBiases] | type[Trackio] | type[MLflow]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "mlflow": MLflow,
}
