"""Evaluation of models: each answers the benchmarks and is measured on held-out general answers.

Lays out a folder a model: in it a folder a benchmark (generations, verdicts, scores), general_loss.json and cost.json.
What is there and was made under the same settings is not made again.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data import Benchmark, Conversation, RunData
from dcr_ds.engine.distributed import Ranks, barrier, broadcast_from_main, print_on_main
from dcr_ds.errors import UserError
from dcr_ds.evaluate.answers import Questions, are_answered
from dcr_ds.evaluate.cost import Cost
from dcr_ds.evaluate.general_loss import general_loss
from dcr_ds.evaluate.generate import answer_questions, check_context, prepare_questions
from dcr_ds.evaluate.log_odds import LogOdds, log_odds_file, measure_log_odds, openings_as_json, openings_of
from dcr_ds.evaluate.remote import ask_questions, prepare_remote
from dcr_ds.evaluate.scores import score
from dcr_ds.files import hash_of, read_json, read_jsonl, write_json
from dcr_ds.judges import Judge, load_judge
from dcr_ds.judges.judging import judge_file
from dcr_ds.models.adapters import load_with_adapter
from dcr_ds.models.chat import Encoded, encode_conversation, load_tokenizer, template_hash
from dcr_ds.models.checkpoint_files import model_hash, tokenizer_folder
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.load import load_causal_lm
from dcr_ds.recipe import EvaluateSection, GuardJudge, Recipe
from dcr_ds.recipe.layout import BenchmarkFolder, ModelFolder, RunFolder

LONGEST_ANSWER = 256  # tokens, where neither the recipe nor a benchmark's authors say


@dataclass(frozen=True)
class Subject:
    """A model under evaluation: its name in messages, the folder of its results, and how it is loaded."""

    name: str
    home: ModelFolder
    source: Path
    dtype: torch.dtype
    attention: str
    chat_template: str | None = None
    adapter: Path | None = None  # in peft's format; merged into the source

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(tokenizer_folder(self.source, self.adapter), self.chat_template)

    def load_model(self, device: torch.device) -> PreTrainedModel:
        if self.adapter is None:
            return load_causal_lm(self.source, self.dtype, self.attention, device)
        return load_with_adapter(self.source, self.adapter, self.dtype, self.attention, device)

    def facts(self) -> dict[str, str]:
        """What its answers depend on, by content: the same model under another path is the same."""
        content = model_hash(self.source) + (f"+{model_hash(self.adapter)}" if self.adapter else "")
        return {"content": content, "dtype": str(self.dtype).removeprefix("torch."), "attention": self.attention}


@dataclass(frozen=True)
class GeneralAnswers:
    """The conversations whose answers' loss is measured, as one model reads them."""

    file: Path
    conversations: list[Encoded]
    too_long: int
    settings_hash: str

    @property
    def is_measured(self) -> bool:
        return (read_json(self.file) or {}).get("settings_hash") == self.settings_hash


def evaluate_models(
    recipe: Recipe,
    folder: Path,
    models: dict[str, Path],
    data: RunData,
    ranks: Ranks,
    dtype: torch.dtype,
    attention: str,
) -> None:
    """Evaluate the models of a run one after the other, into `folder`/evaluate/<name>. All ranks.

    Args:
        folder: the run folder.
        models: base, refined or aligned → model folder. The general loss is measured for all of them; those
            in recipe.evaluate.models also answer the benchmarks.
    """
    check_judges(recipe.evaluate)
    for name, source in models.items():
        home = RunFolder(folder).model(name)
        subject = Subject(name, home, source, dtype, attention, recipe.model.chat_template)
        evaluate_model(subject, data, recipe.evaluate, ranks, answers=name in recipe.evaluate.models)


def evaluate_model(
    subject: Subject, data: RunData, settings: EvaluateSection, ranks: Ranks, answers: bool = True
) -> None:
    """Evaluate one model: its answers to the benchmarks, its refusal log-odds, and the loss on general answers.

    All ranks; each loads it whole.

    Args:
        answers: whether it answers the benchmarks; the loss is always measured.
    """
    assert data.evaluate_general is not None  # load_data reads it with the stage
    benchmarks = data.benchmarks if answers else []
    tokenizer = subject.load_tokenizer()
    facts = broadcast_from_main(subject.facts() if ranks.is_main else None, ranks)
    # Not every architecture has a fixed context.
    context = getattr(AutoConfig.from_pretrained(subject.source), "max_position_embeddings", None)
    questions = [
        prepare_questions(
            benchmark.name,
            subject.home.benchmark(benchmark.name).generations,
            benchmark.prompts.rows,
            tokenizer,
            max_new_tokens=longest_answer(settings, benchmark),
            batch_size=settings.batch_size,
            model_facts=facts,
        )
        for benchmark in benchmarks
    ]
    for each in questions:
        check_context(each, context)
    general = _prepare_general(subject.home, data.evaluate_general.rows, tokenizer, facts, context)
    log_odds = _prepare_log_odds(subject, questions, tokenizer, facts, data, ranks)
    _answer_and_measure(subject, questions, general, log_odds, tokenizer, settings, ranks)
    if ranks.is_main:
        judges = [load_judge(declared) for declared in settings.judges]
        for each, benchmark in zip(questions, benchmarks, strict=True):
            _judge_and_score(each, benchmark, judges)
    barrier(ranks)


def evaluate_endpoint(
    endpoint: Endpoint, home: ModelFolder, benchmarks: Sequence[Benchmark], settings: EvaluateSection, ranks: Ranks
) -> None:
    """Evaluate a model behind an endpoint, which answers the benchmarks and has no loss to measure. Rank 0."""
    cost = Cost(home.cost, f"endpoint {endpoint.url}", world_size=1)
    judges = [load_judge(declared) for declared in settings.judges]
    for benchmark in benchmarks:
        file = home.benchmark(benchmark.name).generations
        questions = prepare_remote(benchmark, file, longest_answer(settings, benchmark), endpoint)
        if not are_answered(questions):
            print_on_main(ranks, f"{endpoint.model}: {benchmark.name}, {len(questions.prompts)} prompts")
            ask_questions(questions, endpoint, ranks, partial(cost.spend, benchmark.name, questions.settings_hash))
            _note_tokens(cost, questions)
        _judge_and_score(questions, benchmark, judges)
    print_on_main(ranks, f"{endpoint.model}: {endpoint.spent}")


def check_judges(settings: EvaluateSection) -> None:
    """Find out now what else would be found out after hours of generation: a judge's key that is missing, say.

    A guard is not looked at: its model would stay in memory beside the one that answers.
    """
    for declared in settings.judges:
        if not isinstance(declared, GuardJudge):
            load_judge(declared)


def longest_answer(settings: EvaluateSection, benchmark: Benchmark) -> int:
    """Tokens: what the recipe says; with `auto` what the benchmark's authors have."""
    if settings.max_new_tokens != "auto":
        return settings.max_new_tokens
    return benchmark.max_new_tokens or LONGEST_ANSWER


def _prepare_general(
    home: ModelFolder,
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    facts: dict[str, str],
    context: int | None,
) -> GeneralAnswers:
    encoded = [encode_conversation(tokenizer, conversation.messages) for conversation in conversations]
    fitting = [one for one in encoded if context is None or len(one.ids) <= context]
    if not fitting:
        raise UserError(
            f"evaluate.general: none of its {len(encoded)} conversations fits the model's context of "
            f"{context} tokens; name a set with shorter ones"
        )
    settings = {
        "model": facts,
        "template": template_hash(tokenizer),
        "ids": [[one.ids, one.prompt_tokens] for one in fitting],
    }
    return GeneralAnswers(home.general_loss, fitting, len(encoded) - len(fitting), hash_of(settings))


def _answer_and_measure(
    subject: Subject,
    benchmarks: list[Questions],
    general: GeneralAnswers,
    log_odds: LogOdds | None,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSection,
    ranks: Ranks,
) -> None:
    """Do the parts that are not done, with the model in memory only here. All ranks."""
    # Rank 0 looks and tells the others: a file system may show them different things for a while.
    missing = broadcast_from_main([not are_answered(questions) for questions in benchmarks], ranks)
    unmeasured = broadcast_from_main(not general.is_measured, ranks)
    unread = broadcast_from_main([not file.is_measured for file in log_odds.files] if log_odds else [], ranks)
    if not any(missing) and not unmeasured and not any(unread):
        print_on_main(ranks, f"evaluate {subject.name}: done before")
        return
    model = subject.load_model(ranks.device)
    cost = Cost(subject.home.cost, device_name(ranks.device), ranks.world_size)
    for questions, is_missing in zip(benchmarks, missing, strict=True):
        if is_missing:
            print_on_main(ranks, f"evaluate {subject.name}: {questions.name}, {len(questions.prompts)} prompts")
            _answer(questions, model, tokenizer, cost, ranks)
    if log_odds and any(unread):
        files = [file for file, is_unread in zip(log_odds.files, unread, strict=True) if is_unread]
        _read_log_odds(subject, replace(log_odds, files=files), model, settings.batch_size, cost, ranks)
    if unmeasured:
        print_on_main(ranks, f"evaluate {subject.name}: loss on {len(general.conversations)} general conversations")
        _measure(general, model, settings.batch_size, cost, ranks)
    barrier(ranks)
    del model
    gc.collect()  # one model in memory at a time: the next is loaded after this
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()


def _answer(
    questions: Questions, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cost: Cost, ranks: Ranks
) -> None:
    # Rank 0 creates the folder while collecting; a part file of another rank is opened only after that.
    if ranks.is_main:
        spend = partial(cost.spend, questions.name, questions.settings_hash)
        answer_questions(questions, model, tokenizer, ranks, spend)
        _note_tokens(cost, questions)
    else:
        answer_questions(questions, model, tokenizer, ranks)


def _prepare_log_odds(
    subject: Subject,
    questions: Sequence[Questions],
    tokenizer: PreTrainedTokenizerBase,
    facts: dict[str, str],
    data: RunData,
    ranks: Ranks,
) -> LogOdds | None:
    if not questions or data.refusal_examples is None or data.ordinary_examples is None:
        return None
    openings, problem = openings_of(tokenizer, data.refusal_examples, data.ordinary_examples)
    if openings is None:
        print_on_main(ranks, f"evaluate {subject.name}: no refusal log-odds: {problem}")
        return None
    compared = _compared_sets(data.benchmarks)
    files = [
        log_odds_file(subject.home.benchmark(each.name).log_odds, each.prompts, each.ids, openings, facts)
        for each in questions
        if each.name in compared
    ]
    return LogOdds(openings, files)


def _compared_sets(benchmarks: Sequence[Benchmark]) -> set[str]:
    """The benchmarks that discernment is measured on: those with a counterpart, else all of them."""
    names = {benchmark.name for benchmark in benchmarks}
    pairs = [(benchmark.name, benchmark.counterpart) for benchmark in benchmarks if benchmark.counterpart in names]
    return {name for pair in pairs for name in pair if name} or names


def _read_log_odds(
    subject: Subject, log_odds: LogOdds, model: PreTrainedModel, batch_size: int, cost: Cost, ranks: Ranks
) -> None:
    print_on_main(ranks, f"evaluate {subject.name}: refusal log-odds, {len(log_odds.openings.openings)} openings")
    key = hash_of([file.settings_hash for file in log_odds.files])
    for file in log_odds.files:
        start = time.perf_counter()
        if problem := measure_log_odds(model, file, log_odds.openings, batch_size, ranks):
            print_on_main(ranks, f"evaluate {subject.name}: no refusal log-odds: {problem}")
            return
        if ranks.is_main:
            cost.spend("log_odds", key, time.perf_counter() - start)
    if ranks.is_main:
        write_json(subject.home.openings, openings_as_json(log_odds.openings))
        cost.finish("log_odds", key, prompts=sum(len(file.prompts) for file in log_odds.files))


def _note_tokens(cost: Cost, questions: Questions) -> None:
    tokens = sum(row["tokens"] for row in read_jsonl(questions.file))
    cost.finish(questions.name, questions.settings_hash, generated_tokens=tokens)


def _measure(
    general: GeneralAnswers,
    model: PreTrainedModel,
    batch_size: int,
    cost: Cost,
    ranks: Ranks,
) -> None:
    start = time.perf_counter()
    result = general_loss(model, general.conversations, batch_size, ranks)
    if general.too_long:
        print_on_main(ranks, f"general loss: {general.too_long} conversations longer than the model's context left out")
    if ranks.is_main:
        facts = {"too_long": general.too_long, "settings_hash": general.settings_hash}
        write_json(general.file, result | facts)
        cost.spend("general_loss", general.settings_hash, time.perf_counter() - start)
        tokens = sum(len(one.ids) for one in general.conversations)
        cost.finish("general_loss", general.settings_hash, tokens=tokens)


def _judge_and_score(questions: Questions, benchmark: Benchmark, judges: Sequence[Judge]) -> None:
    """Judge and score a finished file; every time, so that verdicts and scores fit the answers. Rank 0."""
    home = BenchmarkFolder(questions.file.parent)
    verdicts = {judge.name: judge_file(questions.file, judge, home.verdicts(judge.name)) for judge in judges}
    scores = score(verdicts, questions.prompts, benchmark.wanted, judges)
    write_json(home.scores, scores | ({"counterpart": benchmark.counterpart} if benchmark.counterpart else {}))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
