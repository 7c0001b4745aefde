"""Refusal log-odds during alignment: how readily the model refuses prompts of three categories, without generation.

The prompts are those that stage 1 holds out, and prompts of the general evaluation set. They show the curve of the
alignment, and let it stop at a target share of refusals (`align.target_refusal`).
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from dcr_ds.data.load import RunData
from dcr_ds.data.records import Prompt
from dcr_ds.data.sampler import draw
from dcr_ds.data.splitting import split_held_out
from dcr_ds.diagnose.log_odds import refusal_log_odds
from dcr_ds.diagnose.openings import Openings, find_openings
from dcr_ds.engine.distributed import Ranks, broadcast_from_main
from dcr_ds.judges.strings import published_phrases
from dcr_ds.models.chat import encode_prompt
from dcr_ds.models.limits import row_limit
from dcr_ds.models.rows import encode_row, encode_rows
from dcr_ds.progress import heartbeat
from dcr_ds.recipe import Recipe

MEASURED_PROMPTS = 32  # per category; a measurement should cost less than a step
BATCH_SIZE = 16


@dataclass(frozen=True)
class RefusalProbe:
    """Fixed prompts of each category as token rows, and the openings that count as refusals."""

    prompts: dict[str, list[list[int]]]
    openings: Openings

    def measure(self, model, ranks: Ranks) -> dict[str, float]:
        """Per category the mean log-odds, and the share of prompts to which greedy decoding opens with a refusal.

        All ranks; each reads all prompts.

        Every rank runs the same forward passes, as ZeRO-3 needs.

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


def build_probe(recipe: Recipe, data: RunData, tokenizer: PreTrainedTokenizerBase) -> RefusalProbe:
    """Encode the prompts and find the openings.

    Raises:
        UserError: too little is left of a set to hold out, or there are no refusal openings.
    """
    assert data.seemingly_toxic is not None and data.toxic is not None  # load_data reads them for the probe
    # the same rows as in stage 1, so that the same ones are held out
    limit, _ = row_limit(tokenizer, "refine.max_length", recipe.refine.max_length)
    encoded = {
        name: encode_rows(f"data.{name}", rows.rows, lambda row: encode_prompt(tokenizer, row.messages), [])
        for name, rows in (("seemingly_toxic", data.seemingly_toxic), ("toxic", data.toxic))
    }
    fitting = {name: {row.id: (row, ids) for row, ids in rows if len(ids) <= limit} for name, rows in encoded.items()}
    seemingly_toxic, toxic = ([row for row, _ in rows.values()] for rows in fitting.values())
    split = split_held_out(seemingly_toxic, toxic, recipe.data.held_out, recipe.seed)
    chosen = {"seemingly_toxic": split.held_out_seemingly_toxic, "toxic": split.held_out_toxic}
    prompts = {
        category: [fitting[category][row.id][1] for row in _sample(rows, recipe.seed)]
        for category, rows in chosen.items()
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
    keyed = sorted(rows, key=lambda row: (row.pair or row.id, row.id))
    order = draw(f"{seed}/refusal probe", len(keyed), 0, len(keyed))
    return [keyed[index] for index in order[:MEASURED_PROMPTS]]
