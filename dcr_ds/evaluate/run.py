"""Evaluation of a run: every model answers the benchmarks and is measured on held-out general answers.

Lays out evaluate/<base|refined|aligned>/: a folder a benchmark (generations, verdicts, scores),
general_loss.json and cost.json. What is there and was made under the same settings is not made again.
"""

import gc
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data import Conversation, RunData
from dcr_ds.engine.ranks import Ranks, barrier, from_main, say
from dcr_ds.errors import UserError
from dcr_ds.evaluate.cost import Cost
from dcr_ds.evaluate.files import hash_of, model_hash, read_json, read_jsonl, write_json
from dcr_ds.evaluate.general_loss import general_loss
from dcr_ds.evaluate.generate import (
    Questions,
    answer_questions,
    are_answered,
    check_context,
    prepare_questions,
)
from dcr_ds.evaluate.judge import judge_file
from dcr_ds.evaluate.scores import score
from dcr_ds.models.chat import Encoded, encode_conversation, load_tokenizer, template_hash
from dcr_ds.models.load import load_causal_lm
from dcr_ds.recipe import EvaluateSection, Recipe


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
    """Evaluate models one after the other, into `folder`/evaluate/<name>. All ranks; each loads them whole.

    Args:
        folder: the run folder.
        models: base, refined or aligned → model folder. The general loss is measured for all of them; those
            in recipe.evaluate.models also answer the benchmarks.
    """
    for name, source in models.items():
        tokenizer = load_tokenizer(source, recipe.model.chat_template)
        facts = {
            "content": from_main(model_hash(source) if ranks.is_main else None, ranks),
            "dtype": str(dtype).removeprefix("torch."),
            "attention": attention,
        }
        # Not every architecture has a fixed context.
        context = getattr(AutoConfig.from_pretrained(source), "max_position_embeddings", None)
        home = folder / "evaluate" / name
        asked = data.benchmarks if name in recipe.evaluate.models else []
        benchmarks = [
            prepare_questions(
                benchmark,
                home / benchmark / "generations.jsonl",
                prompts.rows,
                tokenizer,
                max_new_tokens=recipe.evaluate.max_new_tokens,
                batch_size=recipe.evaluate.batch_size,
                model_facts=facts,
            )
            for benchmark, _, prompts in asked
        ]
        for questions in benchmarks:
            check_context(questions, context)
        general = _prepare_general(home, data.evaluate_general.rows, tokenizer, facts, context)
        _answer_and_measure(name, source, benchmarks, general, tokenizer, recipe.evaluate, ranks, dtype, attention)
        if ranks.is_main:
            for questions, (_, wanted, _) in zip(benchmarks, asked, strict=True):
                _judge_and_score(questions, wanted, recipe.evaluate.judges)
        barrier(ranks)


def _prepare_general(
    home: Path,
    conversations: list[Conversation],
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
    return GeneralAnswers(home / "general_loss.json", fitting, len(encoded) - len(fitting), hash_of(settings))


def _answer_and_measure(
    name: str,
    source: Path,
    benchmarks: list[Questions],
    general: GeneralAnswers,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSection,
    ranks: Ranks,
    dtype: torch.dtype,
    attention: str,
) -> None:
    """Do the parts that are not done, with the model in memory only here. All ranks."""
    # Rank 0 looks and tells the others: a file system may show them different things for a while.
    missing = from_main([not are_answered(questions) for questions in benchmarks], ranks)
    unmeasured = from_main(not general.is_measured, ranks)
    if not any(missing) and not unmeasured:
        say(ranks, f"evaluate {name}: done before")
        return
    model = load_causal_lm(source, dtype, attention, ranks.device)
    cost = Cost(general.file.with_name("cost.json"), _device_name(ranks.device), ranks.world_size)
    for questions, is_missing in zip(benchmarks, missing, strict=True):
        if is_missing:
            say(ranks, f"evaluate {name}: {questions.name}, {len(questions.prompts)} prompts")
            _answer(questions, model, tokenizer, cost, ranks)
    if unmeasured:
        say(ranks, f"evaluate {name}: loss on {len(general.conversations)} general conversations")
        _measure(general, model, tokenizer, settings.batch_size, cost, ranks)
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
        tokens = sum(row["tokens"] for row in read_jsonl(questions.file))
        cost.finish(questions.name, questions.settings_hash, generated_tokens=tokens)
    else:
        answer_questions(questions, model, tokenizer, ranks)


def _measure(
    general: GeneralAnswers,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    cost: Cost,
    ranks: Ranks,
) -> None:
    start = time.perf_counter()
    result = general_loss(model, general.conversations, batch_size, tokenizer.pad_token_id, ranks)
    if general.too_long:
        say(ranks, f"general loss: {general.too_long} conversations longer than the model's context left out")
    if ranks.is_main:
        result |= {"too_long": general.too_long, "settings_hash": general.settings_hash}
        write_json(general.file, result)
        cost.spend("general_loss", general.settings_hash, time.perf_counter() - start)
        tokens = sum(len(one.ids) for one in general.conversations)
        cost.finish("general_loss", general.settings_hash, tokens=tokens)


def _judge_and_score(questions: Questions, wanted: str, judges: list[str]) -> None:
    """Judge and score a finished file; every time, so that verdicts and scores fit the answers. Rank 0."""
    home = questions.file.parent
    verdicts = {judge: judge_file(questions.file, judge, home / f"verdicts.{judge}.jsonl") for judge in judges}
    write_json(home / "scores.json", score(verdicts[judges[0]], questions.prompts, wanted, judges[0]))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
