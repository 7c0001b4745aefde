"""Refusal log-odds of the prompts of benchmarks: one file per benchmark, next to the model's answers.

A row is {id, pair, log_odds, first_token, openings, settings_hash}; dcr_ds.diagnose.log_odds defines the figures. The
openings are in openings.json of the model's folder. A model that cannot be read this way is evaluated without them.
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
from dcr_ds.files import hash_of, read_jsonl, write_jsonl
from dcr_ds.judges.strings import published_phrases


@dataclass(frozen=True)
class LogOddsFile:
    """The log-odds of one benchmark's prompts; `settings_hash` covers everything they depend on."""

    file: Path
    prompts: Sequence[Prompt]
    ids: Sequence[list[int]]
    settings_hash: str

    @property
    def is_measured(self) -> bool:
        rows = read_jsonl(self.file)
        return [row["id"] for row in rows] == [prompt.id for prompt in self.prompts] and all(
            row.get("settings_hash") == self.settings_hash for row in rows
        )


@dataclass(frozen=True)
class LogOdds:
    """What is read of one model: the openings, and a file per benchmark."""

    openings: Openings
    files: Sequence[LogOddsFile]


def openings_of(
    tokenizer: PreTrainedTokenizerBase, refusals: ConversationSet, ordinary: ConversationSet
) -> tuple[Openings | None, str]:
    """The refusal openings of a model, or None and the reason where there are none.

    Args:
        refusals, ordinary: conversations whose last message is a refusal, or an ordinary answer.
    """
    refused, answered = ([row.messages[-1]["content"] for row in rows.rows] for rows in (refusals, ordinary))
    try:
        return find_openings(tokenizer, refused, answered, published_phrases()), ""
    except UserError as error:
        return None, str(error)


def log_odds_file(
    file: Path, prompts: Sequence[Prompt], ids: Sequence[list[int]], openings: Openings, model_facts: dict[str, str]
) -> LogOddsFile:
    """Describe the file of one benchmark; nothing is measured yet."""
    read = [[opening.text, opening.tokens] for opening in openings.openings]
    settings = {"model": model_facts, "openings": read, "lead": openings.lead, "ids": ids}
    settings["prompts"] = [[prompt.id, prompt.pair] for prompt in prompts]
    return LogOddsFile(file, prompts, ids, hash_of(settings))


def measure_log_odds(
    model: PreTrainedModel, target: LogOddsFile, openings: Openings, batch_size: int, ranks: Ranks
) -> str | None:
    """Measure and write the file; returns why this model cannot be read, or None. All ranks; each has the whole model.

    The file depends neither on the number of ranks nor on the batch size, up to rounding.
    """
    mine = range(ranks.rank, len(target.prompts), ranks.world_size)
    rows, problem = [], None
    if mine:
        names, tokens = [target.prompts[index].id for index in mine], [target.ids[index] for index in mine]
        try:
            rows = refusal_log_odds(model, names, tokens, openings, batch_size)
        except UserError as error:
            problem = str(error)
    gathered = gather_objects((rows, problem), ranks)
    if problems := [problem for _, problem in gathered if problem]:
        return problems[0]
    if ranks.is_main:
        found = {row["id"]: row for rows, _ in gathered for row in rows}
        write_jsonl(target.file, [_row(prompt, found[prompt.id], target) for prompt in target.prompts])
    return None


def _row(prompt: Prompt, found: dict, target: LogOddsFile) -> dict:
    return {"id": prompt.id, "pair": prompt.pair, **found, "settings_hash": target.settings_hash}


def openings_as_json(openings: Openings) -> dict:
    """The content of openings.json."""
    return asdict(openings)
