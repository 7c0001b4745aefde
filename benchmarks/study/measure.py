"""Measure a model of the study: refusal log-odds, greedy margins, judged answers, and the loss on general answers.

Everything is kept in a working folder, so that an interrupted measurement continues.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from arms import RECIPE, TEMPLATE
from rows import Row
from sets import JUDGE, PairOfSets, Plan

from dcr_ds.data import Benchmark, RunData
from dcr_ds.data.benchmarks import read_benchmarks
from dcr_ds.data.load import check_leakage, load_data
from dcr_ds.diagnose.log_odds import refusal_log_odds
from dcr_ds.engine.distributed import Ranks
from dcr_ds.evaluate.log_odds import openings_of
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.evaluate.origins import made_from
from dcr_ds.evaluate.run import evaluate_model
from dcr_ds.evaluate.targets import LocalModel, locate_target
from dcr_ds.files import read_jsonl, read_object, write_jsonl
from dcr_ds.models.chat import encode_prompt
from dcr_ds.recipe import ChatTemplate, EndpointSection, EvaluateSection, ModelSection, Recipe, load_recipe
from dcr_ds.recipe.layout import ModelFolder

EXAMPLES = 12
READ = ("id", "log_odds", "margin")  # what is kept of the rows of `refusal_log_odds`


class What(NamedTuple):
    """Whether answers are generated and judged, and whether those to attacked prompts are, too."""

    answers: bool
    attacks: bool


class Measured(NamedTuple):
    """Everything measured on a model; `examples` are some answers to harmless prompts, for people to read."""

    rows: list[Row]
    general_loss: float
    seconds: float
    examples: list[dict[str, str]]


def read_sets(data: str, pairs: Sequence[PairOfSets]) -> list[Benchmark]:
    entries = [entry for pair in pairs for entry in pair.entries()]
    return read_benchmarks(EvaluateSection(benchmarks=entries, local_data=data)) if entries else []


def answering_recipe(data: str, plan: Plan, attacks: bool) -> Recipe:
    """A recipe that only evaluates: the answered prompts, and with `attacks` the attacked ones."""
    entries = [entry for pair in plan.pairs.values() if pair.answered for entry in pair.entries()]
    if attacks:
        benchmark, rows = plan.attacked["benchmark"], plan.attacked["rows"]
        entries += [{"name": name, "rows": rows} for name in (benchmark, *_attacked(plan))]
    recipe = load_recipe(str(RECIPE), [])
    section = recipe.evaluate.model_dump() | {"benchmarks": entries, "local_data": data}
    return Recipe.model_validate(recipe.model_dump() | {"stages": ["evaluate"], "evaluate": section})


def _attacked(plan: Plan) -> list[str]:
    return [f"{plan.attacked['benchmark']}+{attack}" for attack in plan.attacked["attacks"]]


def measure(source: str, data: str, work: Path, what: What, plan: Plan) -> Measured:
    """Measure a model or a baseline folder.

    Args:
        source: its folder.
        data: folder of local copies of the public sets.
        work: folder of everything that is kept.

    Raises:
        UserError: the model or the data cannot be used, or the model was made from prompts of the sets.
    """
    start = time.perf_counter()
    ranks = Ranks(0, 1, 0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    template = ChatTemplate(str(TEMPLATE))
    located = locate_target(ModelSection(source=source, chat_template=template.file), EndpointSection())
    assert isinstance(located, LocalModel)
    name, folder = work.parent.name, ModelFolder(work)
    model = EvaluatedModel(name, folder, located.source, torch.float32, "sdpa", template, located.adapter, located.hook)
    recipe = answering_recipe(data, plan, what.attacks)
    only_read = [pair for pair in plan.pairs.values() if not (pair.answered and what.answers)]
    read_only, earlier = read_sets(data, only_read), made_from(source)
    check_leakage(RunData(benchmarks=read_only, earlier=earlier.sets), allow_leakage=False)
    run_data = load_data(recipe, earlier)
    for note in earlier.notes:
        print(note, flush=True)
    read = read_log_odds(model, read_only, run_data, work, ranks)
    evaluate_model(model, run_data, recipe.evaluate, ranks, answers=what.answers)
    if what.answers:  # the log-odds of answered prompts were read from the cache of their answers
        compared = {name for pair in plan.pairs.values() for name in (pair.harmless, pair.harmful)} - read.keys()
        read |= {name: read_jsonl(model.folder.benchmark(name).log_odds) for name in sorted(compared)}
    labels = read_labels(model.folder, run_data.benchmarks) if what.answers else {}
    rows = [
        Row(name, row["id"], row["log_odds"], row["margin"], labels.pop((name, row["id"]), None))
        for name, of_set in read.items()
        for row in of_set
    ]
    rows += [Row(name, prompt, None, None, label) for (name, prompt), label in labels.items()]
    loss = read_object(model.folder.general_loss)["loss"]
    examples = read_examples(model.folder, run_data.benchmarks[0]) if what.answers else []
    return Measured(rows, loss, time.perf_counter() - start, examples)


def read_log_odds(
    model: EvaluatedModel, sets: list[Benchmark], data: RunData, work: Path, ranks: Ranks
) -> dict[str, list[dict]]:
    """The rows of `refusal_log_odds` by set; sets that have a file are not read again."""
    files = {benchmark.name: work / "read" / f"{benchmark.name}.jsonl" for benchmark in sets}
    missing = [benchmark for benchmark in sets if not files[benchmark.name].is_file()]
    if missing:
        assert data.refusal_examples is not None and data.ordinary_examples is not None
        openings = openings_of(model.tokenizer, data.refusal_examples, data.ordinary_examples)
        loaded = model.load(ranks.device).eval()
        for benchmark in missing:
            prompts = benchmark.prompts.rows
            tokens = [encode_prompt(model.tokenizer, prompt.messages) for prompt in prompts]
            rows = refusal_log_odds(loaded, [prompt.id for prompt in prompts], tokens, openings)
            write_jsonl(files[benchmark.name], ({key: row[key] for key in READ} for row in rows))
    return {name: read_jsonl(file) for name, file in files.items()}


def read_examples(folder: ModelFolder, benchmark: Benchmark) -> list[dict[str, str]]:
    """The first answers to a benchmark."""
    rows = read_jsonl(folder.benchmark(benchmark.name).generations)[:EXAMPLES]
    return [{"set": benchmark.name} | {key: row[key] for key in ("id", "prompt", "completion")} for row in rows]


def read_labels(folder: ModelFolder, benchmarks: list[Benchmark]) -> dict[tuple[str, str], str]:
    """The judge's labels by set and id."""
    return {
        (benchmark.name, row["id"]): row["label"]
        for benchmark in benchmarks
        for row in read_jsonl(folder.benchmark(benchmark.name).verdicts(JUDGE))
    }
