"""Refusal log-odds of the prompts of benchmarks: one file per benchmark, next to the model's answers.

A row is {id, pair, log_odds, margin, first_token, openings, settings_hash}; dcr_ds.diagnose.log_odds defines the
figures. The openings are in openings.json of the model's folder. A model for which they cannot be computed is
evaluated without.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data import ConversationSet, Prompt
from dcr_ds.diagnose.log_odds import log_odds_after_answers, refusal_log_odds
from dcr_ds.diagnose.openings import Openings, find_openings
from dcr_ds.engine.distributed import Ranks, gather_objects
from dcr_ds.errors import UserError
from dcr_ds.evaluate.cost import Cost
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

    def only(self, indices: Sequence[int]) -> "LogOdds":
        """The same with the files of these indices."""
        return LogOdds(self.openings, [self.files[index] for index in indices])


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


class LogOddsMeasurement:
    """Measures files of log-odds of one model.

    Prompts that the model has just answered are read from the key-value cache of the answers, which costs the openings
    only. Those rows stay in memory; `finish` measures all other prompts: answered by an earlier run, or by a model
    whose cache cannot be used.
    """

    def __init__(self, model: PreTrainedModel, log_odds: LogOdds, cost: Cost) -> None:
        self.model, self.log_odds, self.cost = model, log_odds, cost
        self.key = hash_of([target.settings_hash for target in log_odds.files])
        self.rows: dict[Path, dict[str, dict]] = {target.file: {} for target in log_odds.files}
        self.from_answers = True

    def after_answers(self, folder: Path, batch: Sequence[int], cache: Cache | None) -> None:
        """Read the prompts of a batch, given by their indices, from the cache of their answers.

        Args:
            folder: of the benchmark; nothing is read if its log-odds are not to be measured.
        """
        target = next((target for target in self.log_odds.files if target.file.parent == folder), None)
        if target is None or cache is None or not self.from_answers:
            return
        start = time.perf_counter()
        rows = self.rows[target.file]
        names, tokens = _named_tokens(target, batch)
        try:
            read = log_odds_after_answers(self.model, names, tokens, self.log_odds.openings, cache, check=not rows)
        except UserError:  # the same problem is found and reported by `finish`
            read = None
            rows.clear()
        self.from_answers = read is not None
        rows |= {row["id"]: row for row in read or []}
        self.cost.spend("log_odds", self.key, time.perf_counter() - start)

    def finish(self, batch_size: int, ranks: Ranks) -> str | None:
        """Measure what is left and write the files; returns why the model does not allow it, or None. All ranks.

        Up to rounding, the files depend neither on the number of ranks nor on the batch size.
        """
        for target in self.log_odds.files:
            start = time.perf_counter()
            if problem := self._finish_file(target, batch_size, ranks):
                return problem
            self.cost.spend("log_odds", self.key, time.perf_counter() - start)
        self.cost.finish("log_odds", self.key, prompts=sum(len(target.prompts) for target in self.log_odds.files))
        return None

    def _finish_file(self, target: LogOddsFile, batch_size: int, ranks: Ranks) -> str | None:
        read = {name: row for rows in gather_objects(self.rows[target.file], ranks) for name, row in rows.items()}
        unread = [index for index, prompt in enumerate(target.prompts) if prompt.id not in read]
        rows, problem = [], None
        if own := unread[ranks.copy :: ranks.copies]:
            names, tokens = _named_tokens(target, own)
            try:
                rows = refusal_log_odds(self.model, names, tokens, self.log_odds.openings, batch_size)
            except UserError as error:
                problem = str(error)
        gathered = gather_objects((rows, problem), ranks)
        if problems := [problem for _, problem in gathered if problem]:
            return problems[0]
        if ranks.is_main:
            read |= {row["id"]: row for rows, _ in gathered for row in rows}
            write_jsonl(target.file, [_row(prompt, read[prompt.id], target) for prompt in target.prompts])
        return None


def _named_tokens(target: LogOddsFile, indices: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    return [target.prompts[index].id for index in indices], [target.ids[index] for index in indices]


def _row(prompt: Prompt, figures: dict, target: LogOddsFile) -> dict:
    return {"id": prompt.id, "pair": prompt.pair, **figures, "settings_hash": target.settings_hash}


def openings_as_json(openings: Openings) -> dict:
    """The content of openings.json."""
    return asdict(openings)
