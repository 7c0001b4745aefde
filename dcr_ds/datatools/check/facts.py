"""`dcr-ds data check`: what a run would read, and what it would refuse or should be looked at, as plain values."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dcr_ds.data.benchmarks import declarations
from dcr_ds.data.licences import Licence, licence_of
from dcr_ds.data.load import CONTRADICTORY, RunData, examine_data
from dcr_ds.data.records import DataSet
from dcr_ds.data.sampler import match_twins
from dcr_ds.datatools.check import duplicates
from dcr_ds.datatools.check.texts import ENGLISH, languages, lengths
from dcr_ds.diagnose.confounds import check_confounds, obstacle
from dcr_ds.errors import UserError
from dcr_ds.evaluate.origins import made_from
from dcr_ds.files import without_nan
from dcr_ds.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Facts = dict[str, Any]
FOREIGN_SHARE = 0.05  # of rows in other languages than English, from which a set gets a warning


def check_data(recipe: Recipe, names: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None" = None) -> Facts:
    """Everything that `dcr-ds data check` reports, as values that JSON can hold.

    Args:
        names: the training sets to check, of `data.load.SETS`.
        tokenizer: measures lengths in tokens; with all sets that the stages need, rows that are too long are counted.

    Returns:
        `sets`, `benchmarks`, `between`, `pairs`, `confounds`, `leakage`, `notes`, `warnings`, and `errors`: why a run
        would refuse the data.
    """
    data, problems = examine_data(recipe, names, made_from(recipe.model.source))
    errors, notes = [str(problem) for problem in problems], list(data.notes)
    training = data.training_sets()
    sets = {}
    for name, data_set in training.items():
        try:
            source = getattr(recipe.data, name.removeprefix("data."))
            licence = licence_of(source) or _same_as_a_benchmark(name, data)
            sets[name] = _describe(name, data_set, tokenizer) | {"licence": licence and licence._asdict()}
        except UserError as error:
            errors.append(str(error))
    if tokenizer is not None and not errors:
        notes += _encoded_notes(recipe, data, tokenizer, errors)
    confounds, left_out = _confounds(data)
    facts: Facts = {
        "sets": sets,
        "benchmarks": {name: _described_benchmark(data_set) for name, data_set in data.evaluation_sets().items()},
        "between": duplicates.between(training),
        "pairs": _pairs(data),
        "confounds": confounds,
        "leakage": [asdict(overlap) for overlap in data.overlaps],
        "notes": notes,
    }
    return without_nan(facts | {"warnings": _warnings(facts) + left_out, "errors": errors})


def _describe(name: str, data_set: DataSet, tokenizer: "PreTrainedTokenizerBase | None") -> Facts:
    notes = list(data_set.notes)
    return {
        "source": data_set.source,
        "version": data_set.version,
        "sha256": data_set.sha256,
        "rows": len(data_set.rows),
        "rows_read": data_set.rows_read,
        "rows_used": data_set.rows_used,
        "left_out": [asdict(part) for part in data_set.left_out],
        "columns": data_set.columns,
        "duplicates": duplicates.within(data_set),
        "length": lengths(name, data_set.rows, tokenizer, notes),
        "languages": languages(data_set.rows),
        "notes": [note for note in notes if note not in {part.note for part in data_set.left_out}],
    }


def _same_as_a_benchmark(name: str, data: RunData) -> Licence | None:
    """The licence of a declared benchmark that holds every prompt of a training set."""
    leaked: dict[str, set[str]] = {}
    for overlap in data.overlaps:
        if overlap.kind == "exact" and overlap.training_set == name:
            leaked.setdefault(overlap.evaluation_set, set()).add(overlap.training_id)
    for benchmark, ids in leaked.items():
        if len(ids) == len(data.training_sets()[name].rows) and (declared := declarations().get(benchmark)):
            return Licence(declared.licence, f"the benchmark {benchmark}, which holds all of its prompts", benchmark)
    return None


def _described_benchmark(data_set: DataSet) -> Facts:
    return {"source": data_set.source, "rows": len(data_set.rows), "notes": data_set.notes}


def _encoded_notes(recipe: Recipe, data: RunData, tokenizer: "PreTrainedTokenizerBase", errors: list[str]) -> list[str]:
    """What the stages leave out of the tokens, if all of their sets are here; appends what a run would refuse."""
    from dcr_ds.align.objective import encode_samples
    from dcr_ds.refine.prompts import encode_refine_prompts

    notes: list[str] = []
    encoders = {"refine": encode_refine_prompts, "align": encode_samples}
    aligned = [data.general, data.refusals] if recipe.align.method == "sft" else [data.preferences]
    needed = {"refine": [data.seemingly_toxic, data.toxic, data.general], "align": aligned}
    for stage, encode in encoders.items():
        if stage in recipe.stages and all(needed[stage]):
            try:
                notes += encode(recipe, data, tokenizer).notes
            except UserError as error:
                errors.append(str(error))
    return [note for note in notes if note not in data.notes]


def _pairs(data: RunData) -> Facts | None:
    """How many prompts of the two sets of stage 1 have a twin in the other one."""
    if data.seemingly_toxic is None or data.toxic is None:
        return None
    harmless, harmful = data.seemingly_toxic.rows, data.toxic.rows
    pairs = len(match_twins(harmless, harmful))
    without = {"seemingly_toxic": len(harmless) - pairs, "toxic": len(harmful) - pairs}
    return {"pairs": pairs, "without_twin": without}


def _confounds(data: RunData) -> tuple[list[Facts] | None, list[str]]:
    """The confound check of the sets of stage 1, None if it cannot be made; and a warning on why."""
    if data.seemingly_toxic is None or data.toxic is None:
        return None, []
    sets = (data.seemingly_toxic.rows, data.toxic.rows)
    if problem := obstacle(*sets):
        return None, [f"confound check left out: {problem}"]
    rows = [
        {"feature": row.name, "auc": row.auc._asdict(), "note": row.note, "warning": row.warning}
        for row in check_confounds(*sets)
    ]
    return rows, []


def _warnings(facts: Facts) -> list[str]:
    warnings = []
    for name, described in facts["sets"].items():
        warnings += _warnings_of_set(name, described)
    for common in facts["between"]:
        if tuple(common["sets"]) in CONTRADICTORY or tuple(reversed(common["sets"])) in CONTRADICTORY:
            count, (first, second) = common["exact"] + common["normalised"], common["sets"]
            warnings.append(f"{count} prompts of {second} are also in {first}, which teaches the opposite answer")
    warnings += [row["warning"] for row in facts["confounds"] or [] if row["warning"]]
    return warnings


def _warnings_of_set(name: str, described: Facts) -> list[str]:
    warnings = []
    licence, found = described["licence"], described["duplicates"]
    if licence and licence["benchmark"]:
        warnings.append(f"{name} is the benchmark {licence['benchmark']}; do not measure on it what is trained on it")
    if found["normalised"]:
        warnings.append(
            f"{name}: {found['normalised']} rows ask the same as an earlier row, in nearly the same letters"
        )
    counts = described["languages"]["counts"]
    foreign = {code: count for code, count in counts.items() if code != ENGLISH}
    if sum(foreign.values()) >= FOREIGN_SHARE * described["rows"]:
        listed = ", ".join(f"{count} {code}" for code, count in foreign.items())
        warnings.append(
            f"{name}: {sum(foreign.values())} of {described['rows']} {described['languages']['of']} are not in English "
            f"({listed}); the default judge reads English"
        )
    return warnings
