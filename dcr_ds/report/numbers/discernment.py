"""Discernment of every column: how well refusals separate harmful from harmless prompts, whatever share is refused.

Benchmarks are compared in pairs, one of harmless and one of harmful prompts: those whose scores name each other as
counterparts, or all harmless against all harmful prompts where no scores do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dcr_ds.discernment import (
    agreement,
    discernment,
    discernment_difference,
    is_headline,
    score_auc,
    score_auc_difference,
    youden_j,
    youden_j_difference,
)
from dcr_ds.discernment.curves import compliance_at, refusal_curve
from dcr_ds.discernment.measures import Result
from dcr_ds.report.numbers.columns import Column, reference_column
from dcr_ds.report.numbers.measured import Benchmark
from dcr_ds.report.numbers.read import BenchmarkResults

HARM = "defence_rate"  # the metric of a judge of harm
JUDGED, JUDGED_AUC, MARGIN_AUC = "youden_j", "judge_auc", "margin_auc"
GRID = np.linspace(0, 1, 101)  # refused shares of harmful prompts at which a curve is drawn
Key = tuple[str, str]  # of a prompt: benchmark and id


@dataclass(frozen=True)
class PairOfSets:
    """Benchmarks of harmless and of harmful prompts that are compared with each other."""

    title: str
    harmless: tuple[str, ...]
    harmful: tuple[str, ...]


@dataclass(frozen=True)
class Readings:
    """The results of a column on the prompts of a pair of sets, in the same order for all columns.

    log_odds, margins, scores: [S, n] of S seeds; NaN where a judge gave no score. labels: [S, n]. None without results;
    scores: also where a seed has none in one of the sets.
    """

    log_odds: np.ndarray | None
    margins: np.ndarray | None
    labels: np.ndarray | None
    scores: np.ndarray | None


@dataclass(frozen=True)
class ColumnDiscernment:
    """The measures of one column by name, their differences to the reference, and their agreement with the answers.

    Attributes:
        agreement: of the log-odds (`auc`) and of the greedy margins (`margin_auc`) with the judged answers.
        compliance: by refusal on GRID, from the log-odds, mean over seeds.
    """

    measures: dict[str, Result]
    differences: dict[str, Result]
    agreement: dict[str, Result]
    compliance: np.ndarray | None

    def is_headline(self, name: str) -> bool:
        """Whether a measure is one of answers, or of a reading that agrees with them well enough for a headline."""
        if name in (JUDGED, JUDGED_AUC):
            return True
        return name in self.agreement and is_headline(self.agreement[name]["low"])


@dataclass(frozen=True)
class Discernment:
    """A pair of sets over all columns; None where a column has no results."""

    pair: PairOfSets
    n_harmless: int
    n_harmful: int
    columns: list[ColumnDiscernment | None]


def largest(measured: Sequence[Discernment]) -> Discernment | None:
    """The pair of sets with the most prompts; None without any."""
    return max(measured, key=lambda entry: entry.n_harmless + entry.n_harmful, default=None)


def measured_discernment(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> list[Discernment]:
    """Discernment on every pair of sets that at least one column has both sides of."""
    entries = (_measure(pair, columns) for pair in _pairs(columns, benchmarks))
    return [entry for entry in entries if entry is not None]


def _pairs(columns: Sequence[Column], benchmarks: Sequence[Benchmark]) -> list[PairOfSets]:
    wanted = {benchmark.name: benchmark.wanted for benchmark in benchmarks if benchmark.metric != HARM}
    counterparts = {
        name: results.score["counterpart"]
        for column in columns
        for model in column.results
        for name, results in model.benchmarks.items()
        if wanted.get(name) == "comply" and wanted.get(results.score.get("counterpart") or "") == "refuse"
    }
    if counterparts:
        return [PairOfSets(f"{a} against {b}", (a,), (b,)) for a, b in sorted(counterparts.items())]
    harmless = tuple(name for name, behaviour in wanted.items() if behaviour == "comply")
    harmful = tuple(name for name, behaviour in wanted.items() if behaviour == "refuse")
    return [PairOfSets("all harmless against all harmful prompts", harmless, harmful)] if harmless and harmful else []


def _measure(pair: PairOfSets, columns: Sequence[Column]) -> Discernment | None:
    per_column = [_results(column, pair) for column in columns]
    keys = _common_prompts(per_column)
    harmful = np.array([name in pair.harmful for name, _ in keys], dtype=bool)
    if not keys or harmful.all() or not harmful.any():
        return None
    twins = _twins(per_column, keys)
    readings = [_readings(seeds, keys, harmful) if seeds else None for seeds in per_column]
    reference = reference_column(columns)
    theirs = readings[list(columns).index(reference)] if reference is not None else None
    entries = [
        None if ours is None else _column(ours, None if ours is theirs else theirs, harmful, twins) for ours in readings
    ]
    return Discernment(pair, int((~harmful).sum()), int(harmful.sum()), entries)


def _results(column: Column, pair: PairOfSets) -> list[dict[str, BenchmarkResults]]:
    """The benchmarks of the pair by name, per seed; empty unless each seed has all of them, judged by refusal."""
    names = (*pair.harmless, *pair.harmful)
    found = [model.benchmarks.get(name) for model in column.results for name in names]
    if any(results is None or results.score["metric"] == HARM for results in found):
        return []
    return [{name: model.benchmarks[name] for name in names} for model in column.results]


def _common_prompts(per_column: Sequence[Sequence[dict[str, BenchmarkResults]]]) -> list[Key]:
    """The prompts that every seed of every column has, in the order of the first one.

    The same id with another text is another prompt; log-odds without answers do not say which text it is.
    """
    texts = [
        {(name, id_): text for name, results in seed.items() for id_, text in _texts(results)}
        for seeds in per_column
        for seed in seeds
    ]
    common = set(texts[0]).intersection(*texts[1:]) if texts else set()
    same = {key for key in common if len({seed[key] for seed in texts} - {None}) < 2}
    return [key for key in texts[0] if key in same] if texts else []


def _texts(results: BenchmarkResults) -> list[tuple[str, str | None]]:
    """The ids of prompts with their texts, where these are known."""
    if results.answers:
        return [(id_, answer.prompt) for id_, answer in results.answers.items()]
    return [(id_, None) for id_ in results.log_odds]


def _twins(per_column: Sequence[Sequence[dict[str, BenchmarkResults]]], keys: Sequence[Key]) -> list[str | None]:
    pairs = {
        (name, id_): row.pair
        for seeds in per_column
        for seed in seeds
        for name, results in seed.items()
        for rows in (results.answers, results.log_odds)
        for id_, row in rows.items()
        if row.pair is not None
    }
    return [pairs.get(key) for key in keys]


def _readings(seeds: Sequence[dict[str, BenchmarkResults]], keys: Sequence[Key], harmful: np.ndarray) -> Readings:
    log_odds = margins = labels = scores = None
    if all(id_ in seed[name].log_odds for seed in seeds for name, id_ in keys):
        rows = [[seed[name].log_odds[id_] for name, id_ in keys] for seed in seeds]
        log_odds = np.array([[row.log_odds for row in of_seed] for of_seed in rows])
        if all(row.margin is not None for of_seed in rows for row in of_seed):
            margins = np.array([[row.margin for row in of_seed] for of_seed in rows])
    if all(id_ in seed[name].answers for seed in seeds for name, id_ in keys):
        answers = [[seed[name].answers[id_] for name, id_ in keys] for seed in seeds]
        judges = [[seed[name].judge for name, _ in keys] for seed in seeds]
        labels = np.array(
            [
                [answer.labels[judge] for answer, judge in zip(row, by, strict=True)]
                for row, by in zip(answers, judges, strict=True)
            ]
        )
        scores = np.array([[np.nan if answer.score is None else answer.score for answer in row] for row in answers])
        is_scored = ~np.isnan(scores)
        if not (is_scored[:, harmful].any(axis=1) & is_scored[:, ~harmful].any(axis=1)).all():
            scores = None
    return Readings(log_odds, margins, labels, scores)


def _column(
    ours: Readings, theirs: Readings | None, harmful: np.ndarray, twins: Sequence[str | None]
) -> ColumnDiscernment:
    measures: dict[str, Result] = {}
    differences: dict[str, Result] = {}
    compliance = None
    if ours.log_odds is not None:
        measures |= discernment(ours.log_odds, harmful, twins)
        compliance = _curve(ours.log_odds, harmful)
        if theirs is not None and theirs.log_odds is not None:
            differences |= discernment_difference(ours.log_odds, theirs.log_odds, harmful, twins)
    for name, field, measure, difference in (
        (MARGIN_AUC, "margins", score_auc, score_auc_difference),
        (JUDGED, "labels", youden_j, youden_j_difference),
        (JUDGED_AUC, "scores", score_auc, score_auc_difference),
    ):
        own, other = getattr(ours, field), getattr(theirs, field, None)
        if own is not None:
            measures[name] = measure(own, harmful, twins)
            if other is not None:
                differences[name] = difference(own, other, harmful, twins)
    agrees = {
        name: agreement(values, ours.labels, twins)
        for name, values in (("auc", ours.log_odds), (MARGIN_AUC, ours.margins))
        if values is not None and ours.labels is not None
    }
    return ColumnDiscernment(measures, differences, agrees, compliance)


def _curve(log_odds: np.ndarray, harmful: np.ndarray) -> np.ndarray:
    """Compliance with harmless prompts at each refused share of harmful ones of GRID, mean over seeds."""
    ones = np.ones((1, len(harmful)))
    curves = [refusal_curve(row, harmful, ones) for row in log_odds]
    return np.mean([[float(compliance_at(curve, refusal)[0]) for refusal in GRID] for curve in curves], axis=0)
