"""Benchmarks: prompt sets with what is wanted of a model, declared in benchmark_sets/, or described in the recipe.

A declaration is a small YAML file: where the set is to be had online and as a local copy, its columns, which rows
count, what is wanted, how long its authors let a model answer, licence and citation. docs/BENCHMARK_SETS.md lists them.
"""

import difflib
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field

from dcr_ds.data.prompts import read_prompts
from dcr_ds.data.records import PromptSet, digest
from dcr_ds.data.selection import draw_rows
from dcr_ds.data.tables import Origin, known_ending
from dcr_ds.errors import UserError
from dcr_ds.recipe import DataSource, EvaluateSection, NamedBenchmark, OwnBenchmark, PositiveInt, Section

FOLDER = Path(__file__).parent / "benchmark_sets"
SUITES = "suites"


class Benchmark(NamedTuple):
    """A prompt set of the evaluation, and what a good model does with every prompt of it."""

    name: str
    wanted: Literal["comply", "refuse"]
    prompts: PromptSet
    max_new_tokens: int | None = None  # the longest answer its authors let a model give, where they say so
    counterpart: str | None = None  # the benchmark of harmful prompts that it is compared with


class Declaration(Section):
    """One file of benchmark_sets/, named after the benchmark."""

    title: str
    wanted: Literal["comply", "refuse"]
    counterpart: str | None = Field(None, description="benchmark of harmful prompts that this one is compared with")
    prompts: PositiveInt | None = Field(None, description="how many count, without repeats; other counts are noted")
    online: DataSource
    local: DataSource | None = Field(None, description="its source is a path in the folder evaluate.local_data")
    shipped: str | None = Field(None, description="which built-in set `online: builtin` means")
    unverified: list[Literal["online", "local"]] = Field([], description="taken from documentation, never opened here")
    gated: bool = Field(False, description="the hub asks for an account that was granted access")
    max_new_tokens: PositiveInt | None = None
    licence: str
    citation: str


@cache
def declarations() -> dict[str, Declaration]:
    """Every declared benchmark by name."""
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
    """The benchmarks that a recipe names or describes, suites taken apart, in order.

    Raises:
        UserError: an unknown name, two of one name, local copies that are missing, or a set that cannot be read.
    """
    asked = [one for benchmark in settings.benchmarks for one in _take_apart(benchmark)]
    names = [one.name for one in asked]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        among = [suite for suite, ones in suites().items() if doubled in [one.name for one in ones]]
        hint = f" ({' and '.join(among)} stand for several)" if among else ""
        raise UserError(f"evaluate.benchmarks: two are called {doubled!r}{hint}; leave one out")
    _check_local_copies(asked, settings.local_data)
    return [
        _read_own(one) if isinstance(one, OwnBenchmark) else _read_declared(one, settings.local_data) for one in asked
    ]


def _take_apart(benchmark: OwnBenchmark | NamedBenchmark) -> list[OwnBenchmark | NamedBenchmark]:
    """A suite's benchmarks, each with at most as many rows as the recipe wants of each; anything else is itself."""
    if isinstance(benchmark, OwnBenchmark) or benchmark.name in declarations():
        return [benchmark]
    if benchmark.name not in suites():
        known = [*declarations(), *suites()]
        near = difflib.get_close_matches(benchmark.name, known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
        raise UserError(
            f"evaluate.benchmarks: no benchmark or suite is called {benchmark.name!r}. {hint} A set of your own is a "
            "mapping: {name: NAME, prompts: FILE, wanted: comply | refuse}"
        )
    if benchmark.source is not None:
        raise UserError(
            f"evaluate.benchmarks: {benchmark.name} is a suite and has no source of its own; name a folder of local "
            "copies with evaluate.local_data"
        )
    return [one.model_copy(update={"rows": _fewer(one.rows, benchmark.rows)}) for one in suites()[benchmark.name]]


def _fewer(rows: int | None, other: int | None) -> int | None:
    return min((count for count in (rows, other) if count is not None), default=None)


def _check_local_copies(asked: list[OwnBenchmark | NamedBenchmark], folder: str | None) -> None:
    """Name all the files that a folder of local copies lacks at once; whoever has it wants nothing from the network."""
    if folder is None:
        return
    wanted = [one.name for one in asked if isinstance(one, NamedBenchmark) and one.source is None]
    missing = {name: path for name in wanted if (path := _local_path(name, folder)) and not path.is_file()}
    if missing:
        lines = [f"  {path} ({declarations()[name].online.source})" for name, path in missing.items()]
        raise UserError(
            f"evaluate.local_data: {folder} lacks the copies of {', '.join(missing)}:\n" + "\n".join(lines) + "\n"
            "Put them there, leave these benchmarks out, or leave local_data out to read them online"
        )


def _local_path(name: str, folder: str) -> Path | None:
    local = declarations()[name].local
    return Path(folder).expanduser() / local.source if local else None


def _read_own(benchmark: OwnBenchmark) -> Benchmark:
    field = f"evaluate.benchmarks.{benchmark.name}.prompts"
    prompts = read_prompts(benchmark.prompts, benchmark.name, field, is_benchmark=True)
    return Benchmark(benchmark.name, benchmark.wanted, prompts, benchmark.max_new_tokens, benchmark.counterpart)


def _read_declared(benchmark: NamedBenchmark, local_data: str | None) -> Benchmark:
    declared, field = declarations()[benchmark.name], f"evaluate.benchmarks.{benchmark.name}"
    source = _source_of(benchmark, declared, local_data)
    prompts = read_prompts(source, declared.shipped or benchmark.name, field, is_benchmark=True)
    if declared.prompts and len(prompts.rows) != declared.prompts:
        prompts.notes.append(f"{len(prompts.rows)} prompts, where {declared.prompts} are published")
    if benchmark.rows is not None and benchmark.rows < len(prompts.rows):
        prompts = _drawn(prompts, benchmark.rows, field)
    return Benchmark(benchmark.name, declared.wanted, prompts, declared.max_new_tokens, declared.counterpart)


def _source_of(benchmark: NamedBenchmark, declared: Declaration, local_data: str | None) -> DataSource:
    """Where the set is read from, with the columns of that form of it: a file has those of the local copy."""
    if benchmark.source is not None:
        local = declared.local if known_ending(benchmark.source) else None
        return (local or declared.online).model_copy(update={"source": benchmark.source})
    if local_data is not None and declared.local is not None:
        return declared.local.model_copy(update={"source": str(_local_path(benchmark.name, local_data))})
    return declared.online


def _drawn(prompts: PromptSet, count: int, field: str) -> PromptSet:
    rows = draw_rows(prompts.rows, DataSource(rows=count), Origin(field, prompts.source, prompts.name))
    notes = [*prompts.notes, f"{count} of its {len(prompts.rows)} prompts drawn"]
    return PromptSet(prompts.name, prompts.source, rows, digest(rows), notes)
