"""The rate of every column on each benchmark, and per prompt whether the answer was as wanted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dcr_ds.errors import UserError
from dcr_ds.report.numbers.columns import Column
from dcr_ds.report.numbers.read import Answer, BenchmarkResults
from dcr_ds.statistics import Interval, seeds_interval, wilson_interval

METRICS = {
    "compliance_rate": "compliance ↑",
    "refusal_rate": "refusal ↑",
    "defence_rate": "harmless answers ↑",
    "attack_success_rate": "success ↓",
}
NOT_JUDGED = ("degenerate", "unparsed")  # labels that are neither compliance nor refusal

Key = tuple[str, str]  # of a prompt: id and text


@dataclass(frozen=True)
class Rate:
    """A share of wanted answers with its 95% interval, over n prompts and one seed or several."""

    value: float
    low: float
    high: float
    n: int
    seeds: int
    apart: dict[str, int]  # answers that are degenerate or unparsed, over all seeds

    @property
    def interval(self) -> Interval:
        return self.low, self.high


@dataclass(frozen=True)
class Benchmark:
    """A benchmark over all columns; None where a column was not evaluated, or its answers were not kept."""

    name: str
    wanted: str  # comply or refuse
    metric: str
    judge: str
    rates: list[Rate | None]
    outcomes: list[np.ndarray | None] = field(repr=False)  # [seeds, prompts] of 0 and 1, prompts alike in all columns
    prompts: list[Key] = field(repr=False)  # of `outcomes`
    categories: list[str | None] = field(repr=False)
    note: str | None  # what limits the comparison

    @property
    def label(self) -> str:
        """The name as it is shown: of an attacked one, the benchmark and the attack as separate words."""
        return self.name.replace("+", ", ")

    @property
    def title(self) -> str:
        return f"{self.label}: {METRICS.get(self.metric, self.metric)}"

    @property
    def n(self) -> int | None:
        """The number of prompts, if it is the same in all columns."""
        sizes = {rate.n for rate in self.rates if rate}
        return sizes.pop() if len(sizes) == 1 else None


def measured_benchmarks(columns: Sequence[Column]) -> list[Benchmark]:
    """All benchmarks without an attack, those that want compliance first.

    Raises:
        UserError: a benchmark of two runs has no prompt in common.
    """
    keys = {
        (results.score["wanted"], name)
        for column in columns
        for model in column.results
        for name, results in model.benchmarks.items()
        if results.attacked is None
    }
    return [measure(name, wanted, columns) for wanted, name in sorted(keys)]


def keyed_answers(results: BenchmarkResults) -> dict[Key, Answer]:
    """Answers by prompt; the same id with another text is another prompt."""
    return {(id_, answer.prompt): answer for id_, answer in results.answers.items()}


def measure(name: str, wanted: str, columns: Sequence[Column]) -> Benchmark:
    """One benchmark over all columns; those with scores of another kind than the first are left out.

    Raises:
        UserError: the runs have no prompt in common.
    """
    of_columns = [
        [model.benchmarks[name] for model in column.results if _asks(model.benchmarks.get(name), wanted)]
        for column in columns
    ]
    metric = next(results.score["metric"] for entry in of_columns for results in entry)
    entries = [[results for results in entry if results.score["metric"] == metric] for entry in of_columns]
    numbers = zip(columns, map(len, of_columns), map(len, entries), strict=True)
    others = [column.title for column, before, after in numbers if after < before]
    answered = [results for entry in entries for results in entry if results.answers]
    keys, note = _common_prompts(name, answered)
    outcomes = [_outcomes(entry, keys) for entry in entries]
    first = keyed_answers(answered[0]) if answered else {}
    categories = [first[key].category for key in keys]
    subset = keys if note else None
    rates = [_rate(entry, subset, outcome) for entry, outcome in zip(entries, outcomes, strict=True)]
    judges = sorted({results.judge for entry in entries for results in entry})
    remarks = [note] if note else []
    if len(judges) > 1:
        remarks.append(f"{name}: judged by {', '.join(judges)}, so the columns are not strictly comparable.")
    if others:
        remarks.append(
            f"{name}: {', '.join(others)} left out: scores of another kind, as the first judge judges harm instead of "
            "refusal, or refusal instead of harm; evaluate again with the same first judge."
        )
    note = " ".join(remarks) or None
    return Benchmark(name, wanted, metric, ", ".join(judges), rates, outcomes, keys, categories, note)


def _asks(results: BenchmarkResults | None, wanted: str) -> bool:
    return results is not None and results.score["wanted"] == wanted


def _common_prompts(name: str, answered: Sequence[BenchmarkResults]) -> tuple[list[Key], str | None]:
    """The prompts that all models answered, in order, and a note if these are not all prompts."""
    if not answered:
        return [], None
    keys_by_results = [list(keyed_answers(results)) for results in answered]
    common = set(keys_by_results[0]).intersection(*keys_by_results[1:])
    if all(len(keys) == len(common) for keys in keys_by_results):
        return keys_by_results[0], None
    if not common:
        folders = ", ".join(dict.fromkeys(str(results.folder) for results in answered))
        raise UserError(
            f"benchmark {name} has no prompt that was asked in all of {folders}, so they cannot be compared; report "
            "the runs separately, or evaluate them on the same prompts"
        )
    sizes = ", ".join(map(str, sorted({len(keys) for keys in keys_by_results})))
    note = (
        f"{name}: the models were asked different prompts ({sizes} of them); all columns show the {len(common)} that "
        "they have in common."
    )
    return [key for key in keys_by_results[0] if key in common], note


def _outcomes(entry: Sequence[BenchmarkResults], keys: Sequence[Key]) -> np.ndarray | None:
    if not entry or not keys or not all(results.answers for results in entry):
        return None
    rows = []
    for results in entry:
        answers = keyed_answers(results)
        counted = results.counts(results.judge)
        rows.append([answers[key].labels[results.judge] in counted for key in keys])
    return np.array(rows, dtype=np.int64)


def _rate(entry: Sequence[BenchmarkResults], subset: Sequence[Key] | None, outcome: np.ndarray | None) -> Rate | None:
    """The rate of a column: from its scores or, for several seeds or a subset of the prompts, from the outcomes."""
    if len(entry) == 1 and (subset is None or outcome is None):
        score = entry[0].score
        apart = {label: score[label] for label in NOT_JUDGED}
        of_none = score["value"] is None
        return None if of_none else Rate(score["value"], score["low"], score["high"], score["n"], 1, apart)
    if outcome is None:
        return None
    apart = {label: sum(_count(results, label, subset) for results in entry) for label in NOT_JUDGED}
    return rate_of(outcome, apart)


def rate_of(outcome: np.ndarray, apart: dict[str, int]) -> Rate:
    """The rate of outcomes [seeds, prompts] of 0 and 1."""
    seeds, size = outcome.shape
    value = float(outcome.mean())
    interval = seeds_interval([outcome]) if seeds > 1 else wilson_interval(round(value * size), size)
    return Rate(value, *interval, size, seeds, apart)


def _count(results: BenchmarkResults, label: str, subset: Sequence[Key] | None) -> int:
    answers = keyed_answers(results)
    return sum(answers[key].labels[results.judge] == label for key in (answers if subset is None else subset))
