"""Refusal log-odds during alignment: how readily the model refuses prompts of three categories, without generation.

The prompts are those that stage 1 holds out, and prompts of the general evaluation set. They show the curve of the
alignment, and let it stop at a target share of refusals (`align.target_refusal`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from dcr_ds.data.load import RunData
from dcr_ds.data.records import Prompt
from dcr_ds.data.sampler import by_pair, draw
from dcr_ds.data.splitting import HeldOutSplit
from dcr_ds.diagnose.log_odds import refusal_log_odds
from dcr_ds.diagnose.openings import Openings, find_openings
from dcr_ds.engine.distributed import Ranks, broadcast_from_main
from dcr_ds.judges.strings import published_phrases
from dcr_ds.models.chat import encode_prompt
from dcr_ds.models.rows import encode_row
from dcr_ds.progress import heartbeat

MEASURED_PROMPTS = 32  # per category; a measurement should cost less than a step
BATCH_SIZE = 16


@dataclass(frozen=True)
class RefusalProbe:
    """Fixed prompts of each category as token rows, and the openings that count as refusals."""

    prompts: dict[str, list[list[int]]]
    openings: Openings

    def measure(self, model, ranks: Ranks) -> dict[str, float]:
        """Per category the mean log-odds, and the share of prompts to which greedy decoding opens with a refusal.

        All ranks; each reads all prompts, since ZeRO-3 needs the same forward passes on every rank.

        Args:
            model: a causal language model, whole or sharded, with or without an adapter.
        """
        figures: dict[str, float] = {}
        for category, prompts in self.prompts.items():
            names = [f"{category} {number}" for number in range(len(prompts))]
            rows = refusal_log_odds(model, names, prompts, self.openings, BATCH_SIZE)
            values = [row["log_odds"] for row in rows]
            figures[f"log_odds_{category}"] = round(sum(values) / len(values), 6)
            figures[f"refused_{category}"] = sum(row["margin"] > 0 for row in rows) / len(rows)
            heartbeat(f"align, refusal log-odds of {category} prompts")
        return broadcast_from_main(figures, ranks)


def build_probe(
    data: RunData,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Mapping[tuple[int, str], list[int]],
    split: HeldOutSplit,
    seed: int,
) -> RefusalProbe:
    """Choose and encode the prompts, and find the openings.

    Args:
        tokens: token ids of the prompts of stage 1, by label and id.
        split: their rows.

    Raises:
        UserError: there are no refusal openings.
    """
    held_out = {"seemingly_toxic": split.held_out_seemingly_toxic, "toxic": split.held_out_toxic}
    prompts = {
        category: [tokens[label, row.id] for row in _sample(rows, seed)]
        for label, (category, rows) in enumerate(held_out.items())
    }
    if data.evaluate_general is not None:
        questions = [row for row in data.evaluate_general.rows if row.messages[0]["role"] == "user"]
        prompts["general"] = [
            encode_row("evaluate.general", row, lambda row: encode_prompt(tokenizer, row.messages[0]["content"]))
            for row in questions[:MEASURED_PROMPTS]
        ]
    refused, answered = (
        [row.messages[-1]["content"] for row in rows.rows] if rows is not None else []
        for rows in (data.refusals, data.general)
    )
    openings = find_openings(tokenizer, refused, answered, published_phrases())
    return RefusalProbe({category: rows for category, rows in prompts.items() if rows}, openings)


def stops_alignment(figures: dict[str, Any], target: float | None) -> str | None:
    """The reason why alignment stops after a measurement, or None if it continues."""
    refused = figures.get("refused_toxic")
    if target is None or refused is None or refused < target:
        return None
    return f"{refused:.0%} of the held-out toxic prompts are refused (target {target:.0%})"


def _sample(rows: list[Prompt], seed: int) -> list[Prompt]:
    """At most MEASURED_PROMPTS rows, the same pairs in both sets."""
    ordered = by_pair(rows)
    return [ordered[index] for index in draw(f"{seed}/refusal probe", len(rows), 0, min(MEASURED_PROMPTS, len(rows)))]
