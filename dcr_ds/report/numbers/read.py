"""Read run folders: all results that exist, as plain records."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcr_ds.errors import UserError
from dcr_ds.recipe import PREFERENCE_TITLES, Recipe, read_yaml
from dcr_ds.recipe.layout import MODELS, BenchmarkFolder, ModelFolder, RunFolder, StageFolder, section_of
from dcr_ds.report.numbers.shapes import (
    Ability,
    Cost,
    Environment,
    GeneralLoss,
    Generation,
    LogOddsRow,
    MetricsRow,
    Openings,
    Scores,
    Summary,
    Verdict,
    read_object,
    read_rows,
)
from dcr_ds.transcript import transcript


@dataclass(frozen=True)
class Answer:
    """A completion and its label by each judge; a prompt of several turns is its transcript."""

    prompt: str
    completion: str
    labels: dict[str, str]
    score: float | None  # of refusal, by the judge of the benchmark's score
    category: str | None  # None also where an earlier version wrote the row
    pair: str | None = None  # names its twin pair, if it has one


@dataclass(frozen=True)
class LogOdds:
    """The refusal log-odds of one prompt; `pair` names its twin pair, if it has one."""

    log_odds: float
    margin: float | None  # None where an earlier version wrote the row
    pair: str | None


@dataclass(frozen=True)
class BenchmarkResults:
    """The results of a model on a benchmark; answers and log-odds by id, empty if only the scores were kept."""

    folder: Path
    score: dict[str, Any]
    answers: dict[str, Answer]
    settings_hash: str | None  # of what the answers depend on: model, prompts, template, decoding
    log_odds: dict[str, LogOdds]
    template_variables: dict[str, str] = field(default_factory=dict)  # of the chat template, as enable_thinking

    @property
    def judge(self) -> str:
        """The judge of the score."""
        return self.score["judge"]

    @property
    def attacked(self) -> str | None:
        """The benchmark whose prompts were asked under an attack; None without an attack."""
        return self.score.get("attacked")

    def counts(self, judge: str) -> list[str]:
        """The numbers of labels of a judge; empty if it is not among the judges of the scores."""
        by_judge = {self.judge: self.score} | self.score.get("by_judge", {})
        return by_judge.get(judge, {}).get("counted", [])


@dataclass(frozen=True)
class ModelResults:
    """What was measured on one model of a run; benchmarks by name, the files as they are."""

    benchmarks: dict[str, BenchmarkResults]
    general_loss: dict | None
    ability: dict[str, dict]  # by task of lm-eval
    cost: dict | None
    openings: dict | None  # the refusal openings that its log-odds are read from


@dataclass(frozen=True)
class Run:
    """A run folder; stages without results are None, models without results are missing.

    refine, control, align: summaries of the stages; control is the same alignment from the base model, without refine.
    control_refusals, align_refusals: metrics rows of these stages with refusal log-odds, the start as step 0.
    """

    folder: Path
    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    refine: dict[str, Any] | None
    control: dict[str, Any] | None
    align: dict[str, Any] | None
    models: dict[str, ModelResults]
    control_refusals: list[dict[str, Any]]
    align_refusals: list[dict[str, Any]]

    @property
    def has_refine(self) -> bool:
        return self.refine is not None or "refine" in self.recipe["stages"]

    @property
    def kind(self) -> str | None:
        """DCR: refined, then aligned. STL: aligned only. DPO, KTO, …: aligned on preferences. None: not aligned."""
        if self.align is None and "align" not in self.recipe["stages"]:
            return None
        if method := self.preference_method:
            return f"DCR + {method}" if self.has_refine else method
        return "DCR" if self.has_refine else "STL"

    @property
    def preference_method(self) -> str | None:
        """DPO, KTO, ORPO or SimPO; None: aligned by SFT."""
        return PREFERENCE_TITLES.get(self.recipe.get("align", {}).get("method"))


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: it is no run folder, a file in it cannot be read, or was written by another version.
    """
    recipe = _read_recipe(folder)
    files = RunFolder(folder)
    refine, control, align = (_read_summary(files, stage) for stage in ("refine", "control", "align"))
    return Run(
        folder=folder,
        name=recipe["name"],
        recipe=recipe,
        environment=read_object(files.environment, Environment) or {},
        refine=refine,
        control=control,
        align=align,
        models={name: results for name in MODELS if (results := _read_model(files.model(name)))},
        control_refusals=_read_refusals(files.stage("control"), control),
        align_refusals=_read_refusals(files.stage("align"), align),
    )


def _read_summary(run: RunFolder, stage: str) -> dict[str, Any] | None:
    way_out = f"restore it, or do the stage again with --redo {section_of(stage)}"
    return read_object(run.stage(stage).summary, Summary, way_out)


def _read_recipe(folder: Path) -> dict[str, Any]:
    path = RunFolder(folder).recipe
    if not path.is_file():
        what = "not a run folder: it has no recipe.yaml" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}. A run folder is <output>/<name> of a recipe, by default runs/<name>")
    try:
        recipe, _ = read_yaml(path.read_text(encoding="utf-8"), str(path), Recipe)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), list) or "name" not in recipe:
        raise UserError(f"{path}: not a resolved recipe: name or stages are missing; run the recipe to write one")
    return recipe | {"name": str(recipe["name"])}


def _read_model(home: ModelFolder) -> ModelResults | None:
    """The results of a model; None if nothing was measured yet."""
    benchmarks = {name: _read_benchmark(home.benchmark(name)) for name in home.scored_benchmarks()}
    general_loss = read_object(home.general_loss, GeneralLoss)
    ability = (read_object(home.ability, Ability) or {"tasks": {}})["tasks"]
    if not benchmarks and not ability and general_loss is None:
        return None
    cost = read_object(home.cost, Cost)
    openings = read_object(home.openings, Openings)
    return ModelResults(benchmarks, general_loss, ability, cost, openings)


def _read_refusals(stage: StageFolder, summary: dict | None) -> list[dict[str, Any]]:
    """The metrics rows of a finished stage with refusal log-odds, after those of its start."""
    if summary is None:
        return []
    start = {"step": 0, **(summary.get("start") or {})}
    rows = [start, *read_rows(stage.metrics, MetricsRow, "remove the line; the report is then without its step")]
    return [row for row in rows if any(name.startswith("log_odds_") for name in row)]


def _read_benchmark(home: BenchmarkFolder) -> BenchmarkResults:
    score = read_object(home.scores, Scores)
    rows = read_rows(home.generations, Generation)
    if home.generations.exists() and len(rows) != score["n"]:
        raise UserError(
            f"{home.generations}: has {len(rows)} answers, but {home.scores.name} counts {score['n']}; run the "
            "evaluation again, which generates only what is missing"
        )
    # verdicts of a judge that is not among those of the scores are of earlier answers
    judges = [judge for judge in home.judges() if judge in (score["judge"], *score.get("by_judge", [judge]))]
    verdicts = {judge: read_rows(home.verdicts(judge), Verdict) for judge in judges}
    labels = {judge: {row["id"]: row["label"] for row in rows} for judge, rows in verdicts.items()}
    judge = score["judge"]
    judge_scores = {row["id"]: row.get("score") for row in verdicts.get(judge, [])}
    if rows and (missing := [row["id"] for row in rows if row["id"] not in labels.get(judge, {})]):
        raise UserError(
            f"{home.verdicts(judge)}: has no verdict on {len(missing)} of the {len(rows)} answers beside "
            f"it (the first is {missing[0]}); run the evaluation again, which judges them without generating"
        )
    answers = {
        row["id"]: Answer(
            transcript(row.get("context"), row["prompt"]),
            row["completion"],
            {name: labels[name][row["id"]] for name in _first(judge, labels) if row["id"] in labels[name]},
            judge_scores.get(row["id"]),
            row.get("category"),
            row.get("pair"),
        )
        for row in rows
    }
    measured = read_rows(home.log_odds, LogOddsRow)
    log_odds = {row["id"]: LogOdds(row["log_odds"], row.get("margin"), row.get("pair")) for row in measured}
    first = rows[0] if rows else {}
    return BenchmarkResults(
        home.folder, score, answers, first.get("settings_hash"), log_odds, first.get("template_variables") or {}
    )


def _first(judge: str, labels: dict[str, dict]) -> list[str]:
    """Names of judges, that of the score first."""
    return sorted(labels, key=lambda name: (name != judge, name))
