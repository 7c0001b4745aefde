"""Refusal log-odds of the prompts of benchmarks: one file per benchmark, next to the model's answers.

A row is {id, pair, log_odds, margin, first_token, openings, settings_hash}; dcr_ds.diagnose.log_odds defines the
figures. The openings are in openings.json of the model's folder. A model for which they cannot be computed is
evaluated without.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data import ConversationSet, Prompt
from dcr_ds.diagnose.log_odds import refusal_log_odds
from dcr_ds.diagnose.openings import Openings, find_openings
from dcr_ds.engine.distributed import Ranks, gather_objects
from dcr_ds.errors import UserError
from dcr_ds.evaluate.generations import Generations
from dcr_ds.files import hash_of, read_whole_rows, write_jsonl
from dcr_ds.judges.strings import published_phrases


@dataclass(frozen=True)
class LogOddsFile:
    """The log-odds of one benchmark's prompts; `settings_hash` covers everything they depend on."""

    file: Path
    prompts: Sequence[Prompt]
    ids: Sequence[list[int]]
    settings_hash: str

    @property
    def is_complete(self) -> bool:
        rows = read_whole_rows(self.file, ("id", "log_odds"))
        return [row["id"] for row in rows] == [prompt.id for prompt in self.prompts] and all(
            row.get("settings_hash") == self.settings_hash for row in rows
        )


@dataclass(frozen=True)
class LogOdds:
    """The refusal openings of one model, and a file of log-odds per benchmark."""

    openings: Openings
    files: Sequence[LogOddsFile]


def openings_of(
    tokenizer: PreTrainedTokenizerBase, refusals: ConversationSet, ordinary: ConversationSet
) -> tuple[Openings | None, str]:
    """The refusal openings of a model, or None and the reason why there are none.

    Args:
        refusals, ordinary: conversations whose last message is a refusal, or an ordinary answer.
    """
    refused, answered = ([row.messages[-1]["content"] for row in rows.rows] for rows in (refusals, ordinary))
    try:
        return find_openings(tokenizer, refused, answered, published_phrases()), ""
    except UserError as error:
        return None, str(error)


def log_odds_file(
    file: Path, generations: Generations, openings: Openings, model_identity: dict[str, str]
) -> LogOddsFile:
    """Describe the file of the prompts that a model answers; nothing is measured yet."""
    prompts, ids = generations.prompts, generations.ids
    settings = {
        "figures": ["log_odds", "margin", "first_token"],
        "model": model_identity,
        "openings": [[opening.text, opening.tokens] for opening in openings.openings],
        "lead": openings.lead,
        "ids": ids,
        "prompts": [[prompt.id, prompt.pair] for prompt in prompts],
    }
    return LogOddsFile(file, prompts, ids, hash_of(settings))


def measure_log_odds(
    model: PreTrainedModel, target: LogOddsFile, openings: Openings, batch_size: int, ranks: Ranks
) -> str | None:
    """Measure and write the file; returns why the model does not allow it, or None. All ranks.

    Up to rounding, the file depends neither on the number of ranks nor on the batch size.
    """
    own = range(ranks.copy, len(target.prompts), ranks.copies)
    rows, problem = [], None
    if own:
        names, tokens = [target.prompts[index].id for index in own], [target.ids[index] for index in own]
        try:
            rows = refusal_log_odds(model, names, tokens, openings, batch_size)
        except UserError as error:
            problem = str(error)
    gathered = gather_objects((rows, problem), ranks)
    if problems := [problem for _, problem in gathered if problem]:
        return problems[0]
    if ranks.is_main:
        by_id = {row["id"]: row for rows, _ in gathered for row in rows}
        write_jsonl(target.file, [_row(prompt, by_id[prompt.id], target) for prompt in target.prompts])
    return None


def _row(prompt: Prompt, figures: dict, target: LogOddsFile) -> dict:
    return {"id": prompt.id, "pair": prompt.pair, **figures, "settings_hash": target.settings_hash}


def openings_as_json(openings: Openings) -> dict:
    """The content of openings.json."""
    return asdict(openings)
