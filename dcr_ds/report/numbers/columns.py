"""The models that a report compares: a column per model of a single run, or the aligned models of several runs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dcr_ds.recipe.layout import ALIGNED, BASE, CONTROL
from dcr_ds.report.numbers.read import ModelResults, Run

NOT_OF_THE_METHOD = ("name", "seed", "output", "log_every", "tensorboard", "track", "checkpoint")


@dataclass(frozen=True)
class Column:
    """A model of one run, or of runs that differ only in the seed; missing values are shown as a dash."""

    title: str
    model: str
    runs: tuple[Run, ...]

    @property
    def results(self) -> list[ModelResults]:
        """Results in the order of the seeds; runs that did not measure this model are left out."""
        runs = sorted(self.runs, key=lambda run: str(run.recipe.get("seed")))  # paired with those of other columns
        return [run.models[self.model] for run in runs if self.model in run.models]

    @property
    def is_judged(self) -> bool:
        """Whether it answered a benchmark."""
        return any(results.benchmarks for results in self.results)


def result_columns(runs: Sequence[Run]) -> list[Column]:
    """The models of one run; or, of several runs, base once and then the aligned model of each, seeds together.

    The model of a run that only evaluated a model has the name of the run.
    """
    if len(runs) == 1:
        run = runs[0]
        trained = run.kind is not None or len(run.models) > 1
        titles = trained_titles(run) if CONTROL in run.models else {}
        return [Column(titles.get(model, model if trained else run.name), model, (run,)) for model in run.models]
    base = next((run for run in runs if BASE in run.models), None)
    groups = seed_groups(runs)
    columns = [Column(BASE, BASE, (base,))] if base else []
    for title, group in zip(group_titles(groups), groups, strict=True):
        if any(CONTROL in run.models for run in group):
            columns.append(Column(f"{trained_titles(group[0])[CONTROL]}, control of {title}", CONTROL, group))
        columns.append(Column(title, ALIGNED, group))
    return columns


def trained_titles(run: Run) -> dict[str, str]:
    """Titles of the control, named after its method, and of the aligned model, named after that of the run."""
    control = run.preference_method or "STL"
    return {CONTROL: control, ALIGNED: run.kind or ALIGNED}


def reference_column(columns: Sequence[Column]) -> Column | None:
    """The reference model: the control, else the aligned model of the first run, else base."""
    measured = [column for column in columns if column.results]
    if control := next((column for column in measured if column.model == CONTROL), None):
        return control
    aligned = [column for column in measured if column.model == ALIGNED]
    first = aligned if len(aligned) > 1 else measured
    return first[0] if len(measured) > 1 else None


def rivals(columns: Sequence[Column]) -> list[Column]:
    """The columns that can have the best value: base only if there is nothing else to compare."""
    trained = [column for column in columns if column.model != BASE and column.is_judged]
    return trained if len(trained) > 1 else list(columns)


def seed_groups(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Groups of runs that differ only in the seed, trained on the same rows, in the given order."""
    groups: list[list[Run]] = []
    for run in runs:
        group = next((group for group in groups if _is_another_seed(run, group)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return [tuple(group) for group in groups]


def group_titles(groups: Sequence[tuple[Run, ...]]) -> list[str]:
    """STL, DCR, DPO or the like if there is one run of that kind, else names of runs, or folders if names are equal."""
    firsts = [group[0] for group in groups]
    kinds, names = Counter(run.kind for run in firsts), Counter(run.name for run in firsts)
    titles = [
        run.kind if run.kind and kinds[run.kind] == 1 else run.name if names[run.name] == 1 else str(run.folder)
        for run in firsts
    ]
    seeds = ["" if len(group) == 1 else f" ({len(group)} seeds)" for group in groups]
    return [title + of for title, of in zip(titles, seeds, strict=True)]


def run_titles(runs: Sequence[Run]) -> list[str]:
    """A title per run."""
    return group_titles([(run,) for run in runs])


def _is_another_seed(run: Run, group: Sequence[Run]) -> bool:
    same_method = _method(run) == _method(group[0])
    return same_method and run.recipe.get("seed") not in [other.recipe.get("seed") for other in group]


def _method(run: Run) -> tuple[dict, dict]:
    """The recipe without the seed, and the hashes of the rows that it was trained on."""
    recipe = {key: value for key, value in run.recipe.items() if key not in NOT_OF_THE_METHOD}
    sets = run.environment.get("data", {}).items()
    return recipe, {name: facts.get("sha256") for name, facts in sets if name.startswith("data.")}
