"""Benchmarks: prompt sets with the wanted behaviour, declared in benchmark_sets/ or described in the recipe.

From declaration to results: `OwnBenchmark` or `NamedBenchmark` (recipe) → `Benchmark` (its prompts) → `Generations` (a
model's answers) → verdicts (of each judge) → scores.

A declaration is a small YAML file: online source and local copy, columns, which rows count, the wanted behaviour, the
answer length its authors use, licence and citation. docs/benchmark-sets.md lists all of them.
"""

import difflib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field

from dcr_ds.data.attacks import Attack, attacks, conversation
from dcr_ds.data.leakage import normalise
from dcr_ds.data.prompts import read_prompts
from dcr_ds.data.records import Prompt, PromptSet, digest
from dcr_ds.data.selection import draw_rows
from dcr_ds.data.tables import Origin, known_ending
from dcr_ds.errors import UserError
from dcr_ds.files import expand_user
from dcr_ds.recipe import DataSource, EvaluateSection, NamedBenchmark, OwnBenchmark, PositiveInt, Section
from dcr_ds.recipe.urls import expand_variables

FOLDER = Path(__file__).parent / "benchmark_sets"
SUITES = "suites"
ATTACKED = "+"  # <benchmark>+<attack>


class Benchmark(NamedTuple):
    """A prompt set of the evaluation, and what a good model does with every prompt of it."""

    name: str
    wanted: Literal["comply", "refuse"]
    prompts: PromptSet
    max_new_tokens: int | None = None  # answer length that its authors use, if they say
    counterpart: str | None = None  # the benchmark of harmful prompts that it is compared with
    attack: Attack | None = None  # how the prompts are asked; None: as they are
    attacked: str | None = None  # the benchmark whose prompts these are, if there is an attack

    def messages(self, prompt: Prompt) -> tuple[dict[str, str], ...]:
        """The conversation that a model answers."""
        return conversation(prompt, self.attack)

    @property
    def opening(self) -> str:
        """The given first words of each answer; "" without a prefilled answer."""
        return self.attack.opening if self.attack else ""


class Declaration(Section):
    """One file of benchmark_sets/, named after the benchmark."""

    title: str
    wanted: Literal["comply", "refuse"]
    counterpart: str | None = Field(None, description="benchmark of harmful prompts that this one is compared with")
    prompts: PositiveInt | None = Field(None, description="published number of distinct prompts; others are noted")
    online: DataSource
    local: DataSource | None = Field(None, description="its source is a path relative to evaluate.local_data")
    shipped: str | None = Field(None, description="which built-in set `online: builtin` means")
    pairs: str | None = Field(None, description="twins have the same value in `pair`, and their sets have this name")
    unverified: list[Literal["online", "local"]] = Field([], description="taken from documentation, never opened here")
    gated: bool = Field(False, description="the hub requires an account with granted access")
    max_new_tokens: PositiveInt | None = None
    licence: str
    citation: str


@cache
def declarations() -> dict[str, Declaration]:
    """All declared benchmarks by name."""
    files = sorted(path for path in FOLDER.glob("*.yaml") if path.stem != SUITES)
    return {path.stem: Declaration.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in files}


@cache
def suites() -> dict[str, list[NamedBenchmark]]:
    """Names that stand for several benchmarks."""
    written = yaml.safe_load((FOLDER / f"{SUITES}.yaml").read_text(encoding="utf-8"))
    return {suite: [_named(benchmark) for benchmark in benchmarks] for suite, benchmarks in written.items()}


def _named(benchmark: str | dict[str, Any]) -> NamedBenchmark:
    return NamedBenchmark.model_validate({"name": benchmark} if isinstance(benchmark, str) else benchmark)


def read_benchmarks(settings: EvaluateSection) -> list[Benchmark]:
    """Read the benchmarks of a recipe in order, with suites expanded.

    Raises:
        UserError: an unknown or repeated name, missing local copies, or a set that cannot be read.
    """
    chosen = [pair for entry in settings.benchmarks for pair in _with_attack(entry)]
    listed = [_full_name(benchmark, attack) for benchmark, attack in chosen]
    chosen += [
        (benchmark, attack)
        for benchmark, of_entry in chosen
        for attack in settings.attacks
        if of_entry is None and _wanted(benchmark) == "refuse" and _full_name(benchmark, attack) not in listed
    ]
    names = [_full_name(benchmark, attack) for benchmark, attack in chosen]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        containing = [suite for suite, members in suites().items() if repeated in [member.name for member in members]]
        hint = f" (it is part of {' and '.join(containing)})" if containing else ""
        raise UserError(f"evaluate.benchmarks: two benchmarks have the name {repeated!r}{hint}; remove one")
    if settings.attacks and not any(attack for _, attack in chosen):
        raise UserError(
            "evaluate.attacks: none of the benchmarks has harmful prompts to attack; add one, such as advbench"
        )
    _check_own([benchmark for benchmark, _ in chosen])
    _check_local_copies([benchmark for benchmark, _ in chosen], settings.local_data)
    benchmarks = [_under_attack(_read(benchmark, settings.local_data), attack) for benchmark, attack in chosen]
    _note_common_prompts({benchmark.name: benchmark for benchmark in benchmarks})
    return benchmarks


def _check_own(benchmarks: list[OwnBenchmark | NamedBenchmark]) -> None:
    """Raise UserError for a counterpart that is not the harmful set of a harmless one, or a public name misused."""
    wanted = {benchmark.name: _wanted(benchmark) for benchmark in benchmarks}
    for benchmark in benchmarks:
        if not isinstance(benchmark, OwnBenchmark):
            continue
        field, other = f"evaluate.benchmarks.{benchmark.name}", benchmark.counterpart
        if (declared := declarations().get(benchmark.name)) and declared.wanted != benchmark.wanted:
            raise UserError(f"{field}: is a public benchmark with wanted: {declared.wanted}; name yours differently")
        if other is not None and other not in wanted:
            raise UserError(f"{field}.counterpart: {other!r} is not evaluated; benchmarks: {', '.join(wanted)}")
        if other is not None and (benchmark.wanted, wanted[other]) != ("comply", "refuse"):
            raise UserError(
                f"{field}.counterpart: stands with a benchmark of harmless prompts (wanted: comply), and names one of "
                "harmful prompts (wanted: refuse)"
            )


def _note_common_prompts(benchmarks: dict[str, Benchmark]) -> None:
    """Note prompts that are in a benchmark and in its counterpart: a model cannot comply and refuse."""
    for benchmark in benchmarks.values():
        counterpart = benchmarks.get(benchmark.counterpart or "")
        if counterpart is None or benchmark.attack:
            continue
        harmful = {normalise(row.prompt) for row in counterpart.prompts.rows}
        if count := sum(normalise(row.prompt) in harmful for row in benchmark.prompts.rows):
            benchmark.prompts.notes.append(
                f"{count} prompts are also in {counterpart.name}, where the opposite answer is wanted; remove them "
                "from one of the files"
            )


def _full_name(benchmark: OwnBenchmark | NamedBenchmark, attack: str | None) -> str:
    return benchmark.name + (ATTACKED + attack if attack else "")


def _wanted(benchmark: OwnBenchmark | NamedBenchmark) -> str:
    return benchmark.wanted if isinstance(benchmark, OwnBenchmark) else declarations()[benchmark.name].wanted


def _with_attack(entry: OwnBenchmark | NamedBenchmark) -> list[tuple[OwnBenchmark | NamedBenchmark, str | None]]:
    """The benchmarks of an entry, and the attack that it names; of an attacked suite, those with harmful prompts."""
    if isinstance(entry, OwnBenchmark) or ATTACKED not in entry.name:
        return [(benchmark, None) for benchmark in _expanded(entry)]
    name, _, attack = entry.name.partition(ATTACKED)
    if attack not in attacks():
        raise UserError(
            f"evaluate.benchmarks: {entry.name}: unknown attack {attack!r}; attacks: {', '.join(attacks())}"
        )
    members = _expanded(entry.model_copy(update={"name": name}))
    harmful = [(benchmark, attack) for benchmark in members if _wanted(benchmark) == "refuse"]
    if not harmful:
        raise UserError(
            f"evaluate.benchmarks: {entry.name}: {name} has harmless prompts, and attacks are for harmful ones"
        )
    return harmful  # type: ignore[return-value]  # lists are invariant


def _under_attack(benchmark: Benchmark, attack: str | None) -> Benchmark:
    if attack is None:
        return benchmark
    name = f"{benchmark.name}{ATTACKED}{attack}"
    return benchmark._replace(name=name, attack=attacks()[attack], attacked=benchmark.name)


def _expanded(benchmark: OwnBenchmark | NamedBenchmark) -> list[OwnBenchmark | NamedBenchmark]:
    """The members of a suite, each with at most as many rows as the recipe asks for; any other benchmark unchanged."""
    if isinstance(benchmark, OwnBenchmark) or benchmark.name in declarations():
        return [benchmark]
    if benchmark.name not in suites():
        known = [*declarations(), *suites()]
        similar = difflib.get_close_matches(benchmark.name, known, n=1, cutoff=0.5)
        hint = f"Did you mean {similar[0]}?" if similar else f"Available: {', '.join(known)}."
        raise UserError(
            f"evaluate.benchmarks: unknown benchmark or suite {benchmark.name!r}. {hint} Describe your own prompt set "
            "with a mapping: {name: NAME, prompts: FILE, wanted: comply | refuse}"
        )
    if benchmark.source is not None:
        raise UserError(
            f"evaluate.benchmarks: {benchmark.name} is a suite and cannot have a source; set evaluate.local_data to a "
            "folder of local copies"
        )
    if benchmark.columns or benchmark.where is not None or benchmark.subset or benchmark.split:
        raise UserError(
            f"evaluate.benchmarks: {benchmark.name} is a suite; columns, where, subset and split are for one benchmark"
        )
    return [
        member.model_copy(update={"rows": _minimum(member.rows, benchmark.rows)}) for member in suites()[benchmark.name]
    ]


def _minimum(first: int | None, second: int | None) -> int | None:
    return min((count for count in (first, second) if count is not None), default=None)


def _check_local_copies(chosen: list[OwnBenchmark | NamedBenchmark], folder: str | None) -> None:
    """Report all missing files of the folder of local copies at once. With such a folder, nothing is downloaded."""
    if folder is None:
        return
    names = [
        benchmark.name for benchmark in chosen if isinstance(benchmark, NamedBenchmark) and benchmark.source is None
    ]
    missing = {name: path for name in names if (path := _local_path(name, folder)) and not path.is_file()}
    if missing:
        lines = [f"  {path} ({declarations()[name].online.source})" for name, path in missing.items()]
        raise UserError(
            f"evaluate.local_data: {folder} lacks the copies of {', '.join(missing)}:\n" + "\n".join(lines) + "\n"
            "Put the files there, remove these benchmarks, or remove local_data to read them online"
        )


def _local_path(name: str, folder: str) -> Path | None:
    local = declarations()[name].local
    return expand_user(expand_variables(folder, "evaluate.local_data")) / local.source if local else None


def _read(benchmark: OwnBenchmark | NamedBenchmark, local_data: str | None) -> Benchmark:
    return _read_own(benchmark) if isinstance(benchmark, OwnBenchmark) else _read_declared(benchmark, local_data)


def _read_own(benchmark: OwnBenchmark) -> Benchmark:
    field = f"evaluate.benchmarks.{benchmark.name}.prompts"
    prompts = read_prompts(benchmark.prompts, benchmark.name, field, is_benchmark=True)
    return Benchmark(benchmark.name, benchmark.wanted, prompts, benchmark.max_new_tokens, benchmark.counterpart)


def _read_declared(benchmark: NamedBenchmark, local_data: str | None) -> Benchmark:
    declared, field = declarations()[benchmark.name], f"evaluate.benchmarks.{benchmark.name}"
    source = _changed(_source_of(benchmark, declared, local_data), benchmark)
    prompts = read_prompts(source, declared.shipped or benchmark.name, field, is_benchmark=True)
    if declared.prompts and len(prompts.rows) != declared.prompts:
        prompts.notes.append(f"{len(prompts.rows)} prompts, but {declared.prompts} are published")
    if declared.pairs:
        rows = [replace(row, pair=row.pair and f"{declared.pairs} {row.pair}") for row in prompts.rows]
        prompts = replace(prompts, rows=rows, sha256=digest(rows))
    if benchmark.rows is not None and benchmark.rows < len(prompts.rows):
        prompts = _drawn(prompts, benchmark.rows, field)
    return Benchmark(benchmark.name, declared.wanted, prompts, declared.max_new_tokens, declared.counterpart)


def _source_of(benchmark: NamedBenchmark, declared: Declaration, local_data: str | None) -> DataSource:
    """Where the set is read from; files have the columns of the declared local copy, hub data sets those online."""
    if benchmark.source is not None:
        local = declared.local if known_ending(benchmark.source) else None
        return (local or declared.online).model_copy(update={"source": benchmark.source})
    if local_data is not None and declared.local is not None:
        return declared.local.model_copy(update={"source": str(_local_path(benchmark.name, local_data))})
    return declared.online


def _changed(source: DataSource, benchmark: NamedBenchmark) -> DataSource:
    """The source with what the recipe says about it."""
    changes = {"subset": benchmark.subset, "split": benchmark.split, "where": benchmark.where}
    given = {name: value for name, value in changes.items() if value is not None}
    return source.model_copy(update={"columns": source.columns | benchmark.columns, **given})


def _drawn(prompts: PromptSet, count: int, field: str) -> PromptSet:
    rows = draw_rows(prompts.rows, DataSource(rows=count), Origin(field, prompts.source, prompts.name))
    notes = [*prompts.notes, f"{count} of {len(prompts.rows)} prompts drawn"]
    return replace(prompts, rows=rows, sha256=digest(rows), notes=notes)
