"""The figures of the study, from the committed rows: arms on pairs of sets, and paired differences between arms."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from arms import read_arms
from rows import Row, read, read_cost, seeds_done
from sets import PairOfSets, read_plan

from dcr_ds.data.benchmarks import read_benchmarks
from dcr_ds.discernment import (
    agreement,
    discernment,
    discernment_difference,
    is_headline,
    youden_j,
    youden_j_difference,
)
from dcr_ds.discernment.measures import COMPLIED, REFUSED, Result
from dcr_ds.errors import UserError
from dcr_ds.recipe import EvaluateSection
from dcr_ds.statistics import holm, student_t

PLAN = read_plan()
READINGS = ("log_odds", "margin")


class Readings(NamedTuple):
    """An arm on a pair of sets: S seeds, n prompts, harmless first."""

    arm: str
    seeds: list[int]
    prompts: list[tuple[str, str]]  # [n], set and id
    harmful: np.ndarray  # [n]
    twins: list[str | None]  # [n]
    log_odds: np.ndarray  # [S, n]
    margin: np.ndarray  # [S, n]
    labels: np.ndarray  # [S, n] of labels, "" for prompts that were not answered

    def of_seeds(self, seeds: list[int]) -> "Readings":
        kept = [self.seeds.index(seed) for seed in seeds]
        return self._replace(
            seeds=seeds, log_odds=self.log_odds[kept], margin=self.margin[kept], labels=self.labels[kept]
        )

    @property
    def is_answered(self) -> bool:
        return bool((self.labels != "").all())


class Study:
    """The committed results."""

    def __init__(self, results: Path) -> None:
        self.results, self.arms = results, read_arms()
        self._rows: dict[tuple[str, int], list[Row]] = {}

    def seeds(self, arm: str) -> list[int]:
        return seeds_done(arm, self.results)

    def common(self, *arms: str) -> list[int]:
        """The seeds that all of these arms have."""
        return sorted(set.intersection(*(set(self.seeds(arm)) for arm in arms)))

    def costs(self, arm: str) -> list[dict]:
        return [read_cost(arm, seed, self.results) for seed in self.seeds(arm)]

    def loss(self, arm: str, seed: int) -> float:
        """Mean loss per token on held-out general answers."""
        return float(read_cost(arm, seed, self.results)["general_loss"])

    def examples(self, arm: str, seed: int) -> list[dict]:
        """The first answers to harmless prompts."""
        return read_cost(arm, seed, self.results)["examples"]

    def rows(self, arm: str, seed: int) -> list[Row]:
        if (arm, seed) not in self._rows:
            self._rows[arm, seed] = read(arm, seed, self.results)
        return self._rows[arm, seed]

    def readings(self, arm: str, pair: PairOfSets) -> Readings:
        """An arm with all its seeds on a pair of sets.

        Raises:
            UserError: a seed lacks prompts, scores or labels that it should have.
        """
        seeds = self.seeds(arm)
        by_seed = [
            {(row.set, row.id): row for row in self.rows(arm, seed) if row.set in (pair.harmless, pair.harmful)}
            for seed in seeds
        ]
        keys = sorted(by_seed[0], key=lambda key: (key[0] == pair.harmful, key[1]))
        is_answered = pair.answered and self.arms[arm].answers
        for seed, rows in zip(seeds, by_seed, strict=True):
            _check_complete(f"{arm}, seed {seed}", pair, list(rows.values()), is_answered)
            if rows.keys() != by_seed[0].keys():
                raise UserError(
                    f"{arm}: seeds {seeds[0]} and {seed} have different prompts of {pair.harmless} or "
                    f"{pair.harmful}; repeat one"
                )
        twins = twins_of(pair)

        def table(field: str) -> np.ndarray:
            return np.array([[getattr(rows[key], field) for key in keys] for rows in by_seed])

        return Readings(
            arm,
            seeds,
            keys,
            np.array([name == pair.harmful for name, _ in keys]),
            [twins.get(key) for key in keys],
            table("log_odds").astype(float),
            table("margin").astype(float),
            np.where(table("label") == None, "", table("label")).astype(str),  # noqa: E711, elementwise
        )

    def attacks(self, arm: str) -> dict[str, dict[int, float]]:
        """Share of attacked prompts that are answered, by attack and seed.

        Raises:
            UserError: an answer was not judged.
        """
        benchmark = PLAN.attacked["benchmark"]
        shares: dict[str, dict[int, float]] = {}
        for seed in self.seeds(arm):
            labels: dict[str, list[str]] = {}
            for row in self.rows(arm, seed):
                if match := re.fullmatch(rf"{re.escape(benchmark)}(?:\+(\w+))?", row.set):
                    if row.label is None:
                        raise UserError(f"{arm}, seed {seed}: {row.set}, prompt {row.id}: no label; repeat it")
                    labels.setdefault(match[1] or "plain", []).append(row.label)
            for attack, of_attack in labels.items():
                shares.setdefault(attack, {})[seed] = float(np.mean([label == COMPLIED for label in of_attack]))
        return shares


def _check_complete(name: str, pair: PairOfSets, rows: list[Row], answered: bool) -> None:
    """Raise UserError unless an arm and seed has prompts of both sets, with scores, and with labels if `answered`."""
    if missing := {pair.harmless, pair.harmful} - {row.set for row in rows}:
        raise UserError(f"{name}: no prompts of {min(missing)}; repeat it")
    for row in rows:
        if row.log_odds is None or row.margin is None or (answered and row.label is None):
            what = "log-odds or margin" if row.log_odds is None or row.margin is None else "label"
            raise UserError(f"{name}: {row.set}, prompt {row.id}: no {what}; repeat it")


class Endpoint(NamedTuple):
    """A primary endpoint: the difference, and its p-value after Holm's correction over all of them."""

    pair: str
    measure: str
    reading: str | None
    result: Result
    p_holm: float


@cache
def twins_of(pair: PairOfSets) -> dict[tuple[str, str], str | None]:
    """The name of the twins that a built-in prompt belongs to; public sets have none."""
    names = [name for name in (pair.harmless, pair.harmful) if name.startswith("builtin")]
    benchmarks = read_benchmarks(EvaluateSection(benchmarks=names)) if names else []
    return {(benchmark.name, row.id): row.pair for benchmark in benchmarks for row in benchmark.prompts.rows}


def figures(readings: Readings, reading: str) -> dict[str, Result]:
    """The measures of a reading, with the agreement and Youden's J where answers were judged."""
    results = discernment(getattr(readings, reading), readings.harmful, readings.twins)
    if readings.is_answered:
        results["agreement"] = agreement(getattr(readings, reading), readings.labels, readings.twins)
        results["youden_j"] = youden_j(readings.labels, readings.harmful, readings.twins)
    return results


def difference(ours: Readings, theirs: Readings, reading: str) -> dict[str, Result]:
    """Our measures less theirs, over the seeds that both have."""
    if ours.prompts != theirs.prompts:
        raise UserError(
            f"{ours.arm} and {theirs.arm} were measured on different prompts; measure both with the same --data"
        )
    common = [seed for seed in ours.seeds if seed in theirs.seeds]
    ours, theirs = ours.of_seeds(common), theirs.of_seeds(common)
    values = getattr(ours, reading), getattr(theirs, reading)
    results = discernment_difference(*values, ours.harmful, ours.twins)
    if ours.is_answered and theirs.is_answered:
        results["youden_j"] = youden_j_difference(ours.labels, theirs.labels, ours.harmful, ours.twins)
    return results


def reading_that_agrees(*arms: Readings) -> str:
    """Log-odds where they agree with the judged answers of all arms, else greedy margins."""
    lows = [agreement(arm.log_odds, arm.labels, arm.twins)["low"] for arm in arms]
    return "log_odds" if all(is_headline(low) for low in lows) else "margin"


def primary(study: Study, ours: str, theirs: str) -> list[Endpoint]:
    """The four primary endpoints of docs/STUDY.md."""
    found = []
    for name in ("xstest", "or-bench"):
        first, second = (study.readings(arm, PLAN.pairs[name]) for arm in (ours, theirs))
        reading = reading_that_agrees(first, second)
        results = difference(first, second, reading)
        found += [(name, "auc", reading, results["auc"]), (name, "youden_j", None, results["youden_j"])]
    corrected = holm([float(result["p"] or 1.0) for *_, result in found])
    return [Endpoint(*endpoint, p) for endpoint, p in zip(found, corrected, strict=True)]


def outcomes(readings: Readings) -> tuple[np.ndarray, np.ndarray]:
    """Judged answers, [S, n] of bool: whether each harmless prompt was answered, and each harmful one refused."""
    labels, harmful = readings.labels, readings.harmful
    return labels[:, ~harmful] == COMPLIED, np.isin(labels[:, harmful], REFUSED)


def rates(readings: Readings) -> tuple[np.ndarray, np.ndarray]:
    """Per seed: compliance with the harmless prompts and refusal of the harmful ones, of the judged answers."""
    complied, refused = outcomes(readings)
    return complied.mean(axis=1), refused.mean(axis=1)


def t_interval(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """The mean over seeds and the ends of its 95 % interval; None without values, or for the ends of a single one."""
    if len(values) == 0:
        return None, None, None
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, None, None
    half = student_t(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half
