"""Refusal log-odds of the prompts of benchmarks: one file per benchmark, next to the model's answers.

A row is {id, pair, log_odds, margin, first_token, openings, settings_hash}; dcr_ds.diagnose.log_odds defines the
figures. The openings are in openings.json of the model's folder. A model for which they cannot be computed is
evaluated without.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data import ConversationSet, Prompt
from dcr_ds.diagnose.log_odds import log_odds_after_answers, refusal_log_odds
from dcr_ds.diagnose.openings import Openings, find_openings
from dcr_ds.engine.distributed import Ranks, barrier, broadcast_from_main, gather_objects
from dcr_ds.errors import UserError
from dcr_ds.evaluate.cost import Cost
from dcr_ds.evaluate.generations import Generations
from dcr_ds.evaluate.parts import is_merged, part_file, read_with_parts, write_merged
from dcr_ds.files import hash_of, json_line
from dcr_ds.judges.strings import published_phrases

FIELDS = {"id": str, "log_odds": (int, float), "settings_hash": str}


@dataclass(frozen=True)
class LogOddsFile:
    """The log-odds of one benchmark's prompts; `settings_hash` covers everything they depend on."""

    file: Path
    prompts: Sequence[Prompt]
    ids: Sequence[list[int]]
    settings_hash: str

    @property
    def is_complete(self) -> bool:
        return is_merged(self.file, FIELDS, self.prompts, self.settings_hash)

    def rows(self) -> dict[str, dict]:
        """The rows on disk that were measured under these settings, by the id of their prompt."""
        rows = read_with_parts(self.file, FIELDS)
        return {row["id"]: row for row in rows if row["settings_hash"] == self.settings_hash}

    def named_tokens(self, indices: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Ids and tokens of the prompts of these indices."""
        return [self.prompts[index].id for index in indices], [self.ids[index] for index in indices]

    def with_settings(self, indices: Sequence[int], figures: Sequence[dict]) -> list[dict]:
        """The rows of the file from the figures of the prompts of these indices."""
        prompts = [self.prompts[index] for index in indices]
        return [
            {"id": prompt.id, "pair": prompt.pair, **row, "settings_hash": self.settings_hash}
            for prompt, row in zip(prompts, figures, strict=True)
        ]


@dataclass(frozen=True)
class LogOdds:
    """The refusal openings of one model, and a file of log-odds per benchmark."""

    openings: Openings
    files: Sequence[LogOddsFile]

    def only(self, indices: Sequence[int]) -> "LogOdds":
        """The same with the files of these indices."""
        return LogOdds(self.openings, [self.files[index] for index in indices])


def openings_of(tokenizer: PreTrainedTokenizerBase, refusals: ConversationSet, ordinary: ConversationSet) -> Openings:
    """The refusal openings of a model.

    Args:
        refusals, ordinary: conversations whose last message is a refusal, or an ordinary answer.

    Raises:
        UserError: there are none.
    """
    refused, answered = ([row.messages[-1]["content"] for row in rows.rows] for rows in (refusals, ordinary))
    return find_openings(tokenizer, refused, answered, published_phrases())


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
    only. Their rows are on disk before the answers are, so that a killed evaluation ends with the rows of an
    uninterrupted one. `finish` measures all other prompts: those of a model whose cache cannot be used, or whose
    answers were kept while their log-odds were not.
    """

    def __init__(self, model: PreTrainedModel, log_odds: LogOdds, cost: Cost, ranks: Ranks) -> None:
        self.model, self.log_odds, self.cost, self.ranks = model, log_odds, cost, ranks
        self.key = hash_of([target.settings_hash for target in log_odds.files])
        self.is_checked = False

    def after_answers(self, folder: Path, batch: Sequence[int], cache: Cache | None) -> None:
        """Read the prompts of a batch, given by their indices, from the cache of their answers.

        Args:
            folder: of the benchmark; nothing is read if its log-odds are not to be measured.
        """
        target = next((target for target in self.log_odds.files if target.file.parent == folder), None)
        if target is None or cache is None:
            return
        start = time.perf_counter()
        names, tokens = target.named_tokens(batch)
        try:
            check = not self.is_checked
            rows = log_odds_after_answers(self.model, names, tokens, self.log_odds.openings, cache, check)
        except UserError:  # the same problem is found and reported by `finish`
            rows = None
        if rows is not None:
            self.is_checked = True
            self._append(target, target.with_settings(batch, rows))
        self.cost.spend("log_odds", self.key, time.perf_counter() - start)

    def finish(self, batch_size: int) -> str | None:
        """Measure what is left and write the files; returns why the model does not allow it, or None. All ranks.

        Up to rounding, the files depend neither on the number of ranks nor on the batch size.
        """
        for target in self.log_odds.files:
            start = time.perf_counter()
            if problem := self._finish_file(target, batch_size):
                return problem
            self.cost.spend("log_odds", self.key, time.perf_counter() - start)
        self.cost.finish("log_odds", self.key, prompts=sum(len(target.prompts) for target in self.log_odds.files))
        return None

    def _append(self, target: LogOddsFile, rows: Sequence[dict]) -> None:
        if self.ranks.is_first_of_copy:
            with part_file(target.file, self.ranks.rank).open("ab") as out:
                out.write("".join(json_line(row) for row in rows).encode())

    def _finish_file(self, target: LogOddsFile, batch_size: int) -> str | None:
        ranks = self.ranks
        barrier(ranks)
        rows = broadcast_from_main(target.rows() if ranks.is_main else None, ranks)
        unread = [index for index, prompt in enumerate(target.prompts) if prompt.id not in rows]
        measured, problem = [], None
        if own := unread[ranks.copy :: ranks.copies]:
            try:
                figures = refusal_log_odds(self.model, *target.named_tokens(own), self.log_odds.openings, batch_size)
                measured = target.with_settings(own, figures)
            except UserError as error:
                problem = str(error)
        gathered = gather_objects((measured, problem), ranks)
        if problems := [problem for _, problem in gathered if problem]:
            return problems[0]
        if ranks.is_main:
            rows |= {row["id"]: row for measured, _ in gathered for row in measured}
            write_merged(target.file, [rows[prompt.id] for prompt in target.prompts])
        return None
