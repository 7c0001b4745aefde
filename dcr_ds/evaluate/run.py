"""Evaluation of models: each answers the benchmarks and is measured on held-out general answers.

Every model gets a folder (recipe/layout.py): per benchmark its generations, refusal log-odds, verdicts and scores; for
all, general_loss.json and cost.json. What was already made under the same settings is kept.
"""

import gc
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data import Benchmark, RunData
from dcr_ds.engine.distributed import Ranks, barrier, broadcast_from_main, decide_on_main, print_on_main
from dcr_ds.engine.machine import device_name
from dcr_ds.errors import UserError
from dcr_ds.evaluate.cost import Cost
from dcr_ds.evaluate.general_loss import GeneralLoss, general_loss, prepare_general_loss
from dcr_ds.evaluate.generate import Decoding, check_context, generate_missing, prepare_generations
from dcr_ds.evaluate.generations import Generations
from dcr_ds.evaluate.log_odds import LogOdds, LogOddsMeasurement, log_odds_file, openings_of
from dcr_ds.evaluate.model import EvaluatedModel
from dcr_ds.evaluate.remote import generate_remote, prepare_remote
from dcr_ds.evaluate.same_model import MODEL, model_key, refuse_other_model
from dcr_ds.evaluate.scores import score
from dcr_ds.evaluate.serving.answers import answer_with_server, max_length_of
from dcr_ds.files import write_json
from dcr_ds.judges import Judge, load_judge
from dcr_ds.judges.continued import continued
from dcr_ds.judges.judging import judge_file
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.load import DTYPES
from dcr_ds.models.tokenizer import template_hash
from dcr_ds.recipe import EvaluateSection, GuardJudge, Recipe
from dcr_ds.recipe.engines import LOCAL
from dcr_ds.recipe.layout import BenchmarkFolder, ModelFolder, RunFolder

LONGEST_ANSWER = 256  # tokens, if neither the recipe nor a benchmark's authors say


class Missing(NamedTuple):
    """What is still to be measured on a model: indices of files of a kind, and whether the general loss is."""

    generations: list[int]
    log_odds: list[int]
    general_loss: bool


@dataclass(frozen=True)
class Parts:
    """Everything that is measured on one model."""

    tokenizer: PreTrainedTokenizerBase
    generations: list[Generations]
    log_odds: LogOdds | None  # None: not for this model
    general_loss: GeneralLoss
    model: str  # of `model_key`

    def missing(self) -> Missing:
        log_odds = self.log_odds.files if self.log_odds else []
        return Missing(
            [index for index, generations in enumerate(self.generations) if not generations.is_complete],
            [index for index, file in enumerate(log_odds) if not file.is_complete],
            not self.general_loss.is_complete,
        )


def evaluate_models(recipe: Recipe, models: dict[str, Path], data: RunData, ranks: Ranks) -> None:
    """Evaluate the models of a run one after the other, into evaluate/<name> of its folder. All ranks.

    Args:
        recipe: with resolved precision and attention.
        models: name in recipe.layout.MODELS → model folder. The general loss is measured for all of them; those in
            recipe.evaluate.models also answer the benchmarks.
    """
    check_judges(recipe.evaluate)
    section = recipe.model
    for name, source in models.items():
        folder = RunFolder(recipe.folder).model(name)
        model = EvaluatedModel(name, folder, source, DTYPES[section.dtype], section.attention, section.template)
        evaluate_model(model, data, recipe.evaluate, ranks, answers=name in recipe.evaluate.models)


def evaluate_model(
    model: EvaluatedModel, data: RunData, settings: EvaluateSection, ranks: Ranks, answers: bool = True
) -> None:
    """Evaluate one model: its answers to the benchmarks, its refusal log-odds, and the loss on general answers.

    All ranks. Each holds the complete model, or with `settings.ranks_per_copy` the part of one.

    Args:
        settings: an `auto` number of ranks per copy that was not resolved means whole copies.
        answers: whether it answers the benchmarks; the loss is always measured.
    """
    if settings.ranks_per_copy != "auto":
        ranks = replace(ranks, per_copy=settings.ranks_per_copy)
    benchmarks = data.benchmarks if answers else []
    parts = _prepare(model, benchmarks, data, settings, ranks)
    # Rank 0 decides for all ranks: a shared file system may temporarily show them different states.
    missing = broadcast_from_main(parts.missing() if ranks.is_main else None, ranks)
    if not any(missing):
        print_on_main(ranks, f"evaluate {model.name}: already done")
    if ranks.is_main:
        _remove_stale(model.folder, parts, missing)
    served = [index for index, benchmark in enumerate(benchmarks) if is_served(settings, benchmark)]
    if asked := [index for index in missing.generations if index in served]:
        max_length = max_length_of([parts.generations[index] for index in served])
        answer_with_server(model, [parts.generations[index] for index in asked], settings, max_length, ranks)
        missing = missing._replace(generations=[index for index in missing.generations if index not in served])
    if any(missing):
        _measure(model, parts, missing, settings.batch_size, ranks)
    if ranks.is_main:
        judges = [load_judge(declared) for declared in settings.judges]
        for generations, benchmark in zip(parts.generations, benchmarks, strict=True):
            _judge_and_score(generations, benchmark, judges, parts.model)
    barrier(ranks)


def evaluate_endpoint(
    endpoint: Endpoint, folder: ModelFolder, benchmarks: Sequence[Benchmark], settings: EvaluateSection, ranks: Ranks
) -> None:
    """Evaluate a model behind an endpoint: it answers the benchmarks, but gives no loss. Rank 0."""
    cost = Cost(folder.cost, f"endpoint {endpoint.url}", world_size=1)
    # without the address, which changes from job to job
    key = model_key(endpoint.model, json.dumps(endpoint.fields.chat_template_kwargs, sort_keys=True, default=dict))
    refuse_other_model(folder, {benchmark.name for benchmark in benchmarks}, key)
    judges = [load_judge(declared) for declared in settings.judges]
    prepared = [  # all of them before the first request, so that what cannot be asked is found at once
        prepare_remote(
            benchmark, folder.benchmark(benchmark.name).generations, longest_answer(settings, benchmark), endpoint
        )
        for benchmark in benchmarks
    ]
    for file in (folder.general_loss, folder.openings):  # of a model on this machine that was here before
        file.unlink(missing_ok=True)
    for benchmark, generations in zip(benchmarks, prepared, strict=True):
        if not generations.is_complete:
            results = folder.benchmark(benchmark.name)
            results.scores.unlink(missing_ok=True)  # of earlier answers, as in `_remove_stale`
            results.log_odds.unlink(missing_ok=True)
            print_on_main(ranks, f"{endpoint.model}: {benchmark.name}, {len(generations.prompts)} prompts")
            spend = partial(cost.spend, benchmark.name, generations.settings_hash)
            generate_remote(generations, endpoint, ranks, spend)
            cost.finish(benchmark.name, generations.settings_hash, generated_tokens=generations.generated_tokens)
        _judge_and_score(generations, benchmark, judges, key)
    print_on_main(ranks, f"{endpoint.model}: {endpoint.spent}")


def check_judges(settings: EvaluateSection) -> None:
    """Find problems such as a missing key before hours of generation.

    Guards are not checked, because their models would stay in memory next to the evaluated one.
    """
    for declared in settings.judges:
        if not isinstance(declared, GuardJudge):
            load_judge(declared)


def longest_answer(settings: EvaluateSection, benchmark: Benchmark) -> int:
    """Tokens per answer: as the recipe says, or with `auto` as the benchmark's authors do."""
    if settings.max_new_tokens != "auto":
        return settings.max_new_tokens
    return benchmark.max_new_tokens or LONGEST_ANSWER


def is_served(settings: EvaluateSection, benchmark: Benchmark) -> bool:
    """Whether a server answers a benchmark; not if the beginnings of the answers are given."""
    return settings.engine != LOCAL and not benchmark.opening


def encode_evaluation(
    data: RunData, settings: EvaluateSection, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> dict[str, str]:
    """Encode all that a model will read, to find before training what cannot be evaluated; hashes by set.

    Raises:
        UserError: a row cannot be encoded, or is too long for the context.
    """
    hashes = {}
    for benchmark in data.benchmarks:
        generations = _prepare_benchmark(benchmark, Path(), tokenizer, settings, {})
        check_context(generations, context)
        hashes[f"hash of the tokens of benchmark {benchmark.name}"] = generations.settings_hash
    if data.evaluate_general is not None:
        loss = prepare_general_loss(Path(), data.evaluate_general.rows, tokenizer, {}, context)
        hashes["hash of the tokens of evaluate.general"] = loss.settings_hash
    return hashes


def _prepare_benchmark(
    benchmark: Benchmark,
    file: Path,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSection,
    identity: dict[str, str],
) -> Generations:
    decoding = Decoding(longest_answer(settings, benchmark), settings.batch_size)
    if is_served(settings, benchmark):  # the server chooses its own batches and GPUs
        decoding, identity = replace(decoding, batch_size=1), identity | {"engine": settings.engine}
        identity.pop("ranks_per_copy", None)
    return prepare_generations(benchmark, file, tokenizer, decoding, identity)


def _prepare(
    model: EvaluatedModel, benchmarks: Sequence[Benchmark], data: RunData, settings: EvaluateSection, ranks: Ranks
) -> Parts:
    """Encode everything that the model will read, without loading the model."""
    tokenizer, context = model.tokenizer, model.context
    identity = broadcast_from_main(model.identity(ranks.per_copy) if ranks.is_main else None, ranks)
    key = model_key(identity["content"], identity["dtype"], template_hash(tokenizer))
    names = {benchmark.name for benchmark in benchmarks}
    decide_on_main(lambda: refuse_other_model(model.folder, names, key, identity["content"]), ranks)
    all_generations = []
    for benchmark in benchmarks:
        file = model.folder.benchmark(benchmark.name).generations
        generations = _prepare_benchmark(benchmark, file, tokenizer, settings, identity)
        check_context(generations, context)
        all_generations.append(generations)
    assert data.evaluate_general is not None  # load_data reads it with the stage
    loss = prepare_general_loss(model.folder.general_loss, data.evaluate_general.rows, tokenizer, identity, context)
    log_odds = _prepare_log_odds(model, all_generations, identity, data, ranks) if benchmarks else None
    return Parts(tokenizer, all_generations, log_odds, loss, key)


def _prepare_log_odds(
    model: EvaluatedModel,
    all_generations: Sequence[Generations],
    identity: dict[str, str],
    data: RunData,
    ranks: Ranks,
) -> LogOdds | None:
    if data.refusal_examples is None or data.ordinary_examples is None:
        return None
    try:
        openings = openings_of(model.tokenizer, data.refusal_examples, data.ordinary_examples)
    except UserError as problem:
        print_on_main(ranks, f"evaluate {model.name}: no refusal log-odds: {problem}")
        return None
    compared = _compared_sets(data.benchmarks)
    files = [
        log_odds_file(model.folder.benchmark(generations.benchmark).log_odds, generations, openings, identity)
        for generations in all_generations
        if generations.benchmark in compared
    ]
    return LogOdds(openings, files)


def _compared_sets(benchmarks: Sequence[Benchmark]) -> set[str]:
    """The benchmarks that discernment is measured on: those with a counterpart, else all that are not attacked."""
    benchmarks = [benchmark for benchmark in benchmarks if benchmark.attack is None]
    names = {benchmark.name for benchmark in benchmarks}
    pairs = [(benchmark.name, benchmark.counterpart) for benchmark in benchmarks if benchmark.counterpart in names]
    return {name for pair in pairs for name in pair if name} or names


def _remove_stale(folder: ModelFolder, parts: Parts, missing: Missing) -> None:
    """Remove what was measured on earlier answers, which a report would show as of the new ones. Rank 0.

    The new scores are written last, so that an evaluation that is interrupted leaves none; a model whose log-odds
    cannot be computed gets none.
    """
    if missing.generations and parts.log_odds is None:
        folder.openings.unlink(missing_ok=True)
    files = parts.log_odds.files if parts.log_odds else []
    measured = {file.file for index, file in enumerate(files) if index not in missing.log_odds}
    for index in missing.generations:
        results = BenchmarkFolder(parts.generations[index].file.parent)
        results.scores.unlink(missing_ok=True)
        if results.log_odds not in measured:
            results.log_odds.unlink(missing_ok=True)


def _measure(model: EvaluatedModel, parts: Parts, missing: Missing, batch_size: int, ranks: Ranks) -> None:
    """Measure the missing parts. The model is in memory only during this call. All ranks."""
    if ranks.per_copy > 1:
        text = f"copies of the model: {ranks.copies}, ranks per copy: {ranks.per_copy}"
        print_on_main(ranks, f"evaluate {model.name}: {text}")
    loaded = model.load(ranks.device, ranks.per_copy)
    cost = Cost(model.folder.cost, device_name(ranks.device), ranks.world_size, is_writer=ranks.is_main)
    log_odds = (
        LogOddsMeasurement(loaded, parts.log_odds.only(missing.log_odds), cost, ranks) if parts.log_odds else None
    )
    for index in missing.generations:
        generations = parts.generations[index]
        name, key = generations.benchmark, generations.settings_hash
        print_on_main(ranks, f"evaluate {model.name}: {name}, {len(generations.prompts)} prompts")
        read = partial(log_odds.after_answers, generations.file.parent) if log_odds else None
        generate_missing(generations, loaded, parts.tokenizer, ranks, partial(cost.spend, name, key), read)
        if ranks.is_main:
            cost.finish(name, key, generated_tokens=generations.generated_tokens)
    if log_odds and missing.log_odds:
        _finish_log_odds(model, log_odds, batch_size, ranks)
    if missing.general_loss:
        count = len(parts.general_loss.conversations)
        print_on_main(ranks, f"evaluate {model.name}: loss on {count} general conversations")
        _measure_general_loss(parts, loaded, batch_size, cost, ranks)
    barrier(ranks)
    del loaded, log_odds
    gc.collect()  # one model in memory at a time: the next one is loaded after this
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()


def _finish_log_odds(model: EvaluatedModel, log_odds: LogOddsMeasurement, batch_size: int, ranks: Ranks) -> None:
    openings = log_odds.log_odds.openings
    print_on_main(ranks, f"evaluate {model.name}: refusal log-odds, {len(openings.openings)} openings")
    if ranks.is_main:  # first: a file of log-odds that is complete is not measured again
        write_json(model.folder.openings, asdict(openings))
    if problem := log_odds.finish(batch_size):
        print_on_main(ranks, f"evaluate {model.name}: no refusal log-odds: {problem}")


def _measure_general_loss(parts: Parts, loaded: PreTrainedModel, batch_size: int, cost: Cost, ranks: Ranks) -> None:
    target = parts.general_loss
    start = time.perf_counter()
    result = general_loss(loaded, target.conversations, batch_size, ranks)
    if target.too_long:
        print_on_main(ranks, f"general loss: {target.too_long} conversations left out: longer than the model's context")
    if ranks.is_main:
        write_json(target.file, result | {"too_long": target.too_long, "settings_hash": target.settings_hash})
        cost.spend("general_loss", target.settings_hash, time.perf_counter() - start)
        tokens = sum(len(conversation.ids) for conversation in target.conversations)
        cost.finish("general_loss", target.settings_hash, tokens=tokens)


def _judge_and_score(generations: Generations, benchmark: Benchmark, judges: Sequence[Judge], model: str) -> None:
    """Judge and score a complete file; every time, so that verdicts and scores match the answers. Rank 0."""
    folder = BenchmarkFolder(generations.file.parent)
    generations.renew()
    verdicts = {
        judge.name: judge_file(
            generations.file, continued(judge, benchmark.opening), folder.verdicts(judge.name), repair=True
        )
        for judge in judges
    }
    scores = score(verdicts, generations.prompts, benchmark.wanted, judges, is_attacked=benchmark.attack is not None)
    scores |= {MODEL: model}
    if benchmark.attack is not None:
        scores |= {"attack": benchmark.attack.name, "attacked": benchmark.attacked}
    elif benchmark.counterpart:
        scores |= {"counterpart": benchmark.counterpart}
    write_json(folder.scores, scores)
