"""The layout of a run folder: where a run keeps each of its files. No other module spells these names.

<output>/<name>/
  recipe.yaml  environment.json  redo.json  .lock  .lock.owner
  refine/  align/  control/           a StageFolder each: metrics.jsonl, summary.json, model/, …
  evaluate/<model>/                   a ModelFolder each: general_loss.json, cost.json, openings.json, …
  evaluate/<model>/<benchmark>/       a BenchmarkFolder each: generations.jsonl, verdicts.<judge>.jsonl, …
  report/report.md
  diagnose/<diagnosis>/               figures and pictures of `dcr-ds diagnose`
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Stage = Literal["refine", "align", "evaluate"]
TrainingStage = Literal["refine", "align"]
TRAINING_STAGES: tuple[TrainingStage, ...] = get_args(TrainingStage)
STAGES: tuple[Stage, ...] = (*TRAINING_STAGES, "evaluate")
ModelName = Literal["base", "control", "refined", "aligned"]
BASE: ModelName = "base"
CONTROL: ModelName = "control"  # the same alignment from the base model, without refine
REFINED: ModelName = "refined"
ALIGNED: ModelName = "aligned"
MODELS = (BASE, CONTROL, REFINED, ALIGNED)
TrainedStage = Literal["refine", "align", "control"]  # a stage folder each
TRAINED_STAGES: tuple[TrainedStage, ...] = get_args(TrainedStage)
STAGE_OF_MODEL: dict[str, str] = {CONTROL: "control", REFINED: "refine", ALIGNED: "align"}
VERDICTS = "verdicts."


def section_of(stage: str) -> TrainingStage:
    """The section of the recipe that a trained stage follows, and the --redo that repeats it."""
    return "refine" if stage == "refine" else "align"


@dataclass(frozen=True)
class StageFolder:
    """The folder of a training stage."""

    folder: Path

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Written last: a stage with a summary is done."""
        return self.folder / "summary.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained model as transformers loads it; with LoRA, merged."""
        return self.folder / "model"

    @property
    def adapter(self) -> Path:
        """The adapter in peft's format; only with LoRA."""
        return self.folder / "adapter"

    @property
    def exports(self) -> tuple[Path, ...]:
        """The folders of trained weights that exist."""
        return tuple(folder for folder in (self.model, self.adapter) if folder.is_dir())

    @property
    def identity(self) -> Path:
        """What the stage depends on, by content: model, tokenizer, chat template, data."""
        return self.folder / "identity.json"

    @property
    def profile(self) -> Path:
        return self.folder / "profile"

    @property
    def trackers(self) -> Path:
        """The ids of the stage's runs in trackers."""
        return self.folder / "trackers.json"

    @property
    def reference(self) -> Path:
        """Log-probabilities of the reference model of DPO and KTO."""
        return self.folder / "reference.safetensors"

    @property
    def is_done(self) -> bool:
        return self.summary.is_file()

    @property
    def has_results(self) -> bool:
        """Whether a run can resume from this folder; one that failed before its first checkpoint left nothing."""
        return any(path.exists() for path in (self.checkpoints, self.model, self.summary))


@dataclass(frozen=True)
class BenchmarkFolder:
    """The folder of one model's answers to one benchmark."""

    folder: Path

    @property
    def generations(self) -> Path:
        return self.folder / "generations.jsonl"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def log_odds(self) -> Path:
        """Refusal log-odds of the prompts, without generation."""
        return self.folder / "log_odds.jsonl"

    def verdicts(self, judge: str) -> Path:
        return self.folder / f"{VERDICTS}{judge}.jsonl"

    def judges(self) -> list[str]:
        """The names of the judges whose verdicts exist, sorted."""
        files = sorted(self.folder.glob(f"{VERDICTS}*.jsonl"))
        return [file.name.removeprefix(VERDICTS).removesuffix(".jsonl") for file in files]


@dataclass(frozen=True)
class ModelFolder:
    """The folder of everything measured on one model."""

    folder: Path

    @property
    def general_loss(self) -> Path:
        return self.folder / "general_loss.json"

    @property
    def cost(self) -> Path:
        return self.folder / "cost.json"

    @property
    def ability(self) -> Path:
        return self.folder / "ability.json"

    @property
    def openings(self) -> Path:
        """The refusal openings that the log-odds are read from."""
        return self.folder / "openings.json"

    @property
    def server_log(self) -> Path:
        """The output of the server that answered, if evaluate.engine starts one."""
        return self.folder / "server.log"

    @property
    def served(self) -> Path:
        """The folder that the server loads; it exists only while the server runs."""
        return self.folder / ".served"

    def benchmark(self, name: str) -> BenchmarkFolder:
        return BenchmarkFolder(self.folder / name)

    def scored_benchmarks(self) -> list[str]:
        """The names of the benchmarks that have scores, sorted."""
        return sorted(path.parent.name for path in self.folder.glob("*/scores.json") if path.is_file())


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def environment(self) -> Path:
        return self.folder / "environment.json"

    @property
    def lock(self) -> Path:
        """The lock; `.lock.owner` names its holder."""
        return self.folder / ".lock"

    @property
    def redo(self) -> Path:
        """Records a --redo from its beginning until the run is done."""
        return self.folder / "redo.json"

    @property
    def report(self) -> Path:
        return self.folder / "report" / "report.md"

    def stage(self, name: str) -> StageFolder:
        return StageFolder(self.folder / name)

    def model(self, name: str) -> ModelFolder:
        return ModelFolder(self.folder / "evaluate" / name)

    def diagnosis(self, name: str) -> Path:
        """The folder of one diagnosis: entk, layers or pca."""
        return self.folder / "diagnose" / name

    @property
    def has_results(self) -> bool:
        """Whether a run can resume from this folder, in any stage."""
        stages = any(self.stage(stage).has_results for stage in TRAINING_STAGES)
        return stages or any(self.model(model).folder.exists() for model in MODELS)

    @property
    def is_run(self) -> bool:
        return self.recipe.is_file()


def enclosing_run(path: Path) -> RunFolder | None:
    """The run that contains a path: the path itself or one of its three parents; None if none of them is a run."""
    return next((run for run in _candidates(path) if run.is_run), None)


def _candidates(path: Path) -> Iterator[RunFolder]:
    yield RunFolder(path)
    yield from map(RunFolder, path.absolute().parents[:3])
