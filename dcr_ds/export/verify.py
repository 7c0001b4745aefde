"""Compare the refusal log-odds of an exported or served model with those of the model of the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dcr_ds.data.records import Prompt
from dcr_ds.diagnose.log_odds import refusal_log_odds
from dcr_ds.diagnose.openings import Openings
from dcr_ds.errors import UserError
from dcr_ds.evaluate.targets import LocalModel
from dcr_ds.export.served import served_log_odds, served_tokens
from dcr_ds.models.chat import encode_within_context
from dcr_ds.models.endpoint import Endpoint
from dcr_ds.models.gguf_file import load_gguf
from dcr_ds.models.hooks.load import load_model
from dcr_ds.models.rows import encode_row
from dcr_ds.models.tokenizer import load_tokenizer

BOUND = 0.01  # between float32 readings of the same weights, which differ by rounding
SERVED_BOUND = 1.0  # a server computes in 16 bits
Model = LocalModel | Path | Endpoint  # a model or adapter folder, a GGUF file, or a served model


@dataclass(frozen=True)
class Asked:
    """What the models are asked: prompts, their tokens in the model of the run, and its refusal openings."""

    prompts: Sequence[Prompt]
    ids: Sequence[list[int]]
    openings: Openings


@dataclass(frozen=True)
class Compared:
    """A model compared with that of the run.

    Attributes:
        difference: largest absolute difference of the log-odds.
        prompt: id of the prompt that has it.
        other_tokens: number of prompts that the model's own tokenizer and chat template give other tokens; None if
            unknown.
        bound: that the difference must not exceed.
    """

    difference: float
    prompt: str
    other_tokens: int | None
    bound: float

    @property
    def is_equal(self) -> bool:
        return self.difference <= self.bound and not self.other_tokens


def log_odds_of(model: LocalModel, asked: Asked) -> list[float]:
    """The log-odds of a model, adapter or baseline folder, read in float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _read(load_model(*model, torch.float32, "eager", device), asked)


def compare(model: Model, asked: Asked, expected: Sequence[float], bound: float | None) -> Compared:
    """Compare a model with the log-odds that are expected.

    Args:
        bound: None: BOUND, or SERVED_BOUND for an endpoint.

    Raises:
        UserError: the model cannot be loaded, or the endpoint cannot be used.
    """
    if isinstance(model, Endpoint):
        values, tokens = served_log_odds(model, asked.ids, asked.openings), _served_ids(model, asked.prompts)
    elif isinstance(model, LocalModel):
        tokenizer = load_tokenizer(model.tokenizer, None, model.source)
        values, tokens = log_odds_of(model, asked), _ids(tokenizer, asked.prompts)
    else:
        loaded, tokenizer = load_gguf(model)
        values, tokens = _read(loaded, asked), _ids(tokenizer, asked.prompts)
    differences = [abs(value - wanted) for value, wanted in zip(values, expected, strict=True)]
    largest = max(range(len(differences)), key=differences.__getitem__)
    other = None if tokens is None else sum(a != b for a, b in zip(tokens, asked.ids, strict=True))
    bound = bound or (SERVED_BOUND if isinstance(model, Endpoint) else BOUND)
    return Compared(differences[largest], asked.prompts[largest].id, other, bound)


def asked_of(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], openings: Openings) -> Asked:
    """The prompts with their tokens by the tokenizer of the run's model."""
    return Asked(prompts, _ids(tokenizer, prompts), openings)


def _ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of prompts; none without a chat template, which a GGUF file may lack."""
    if tokenizer.chat_template is None:
        return [[] for _ in prompts]
    return [encode_row("verify", row, lambda row: encode_within_context(tokenizer, row.messages)) for row in prompts]


def _served_ids(endpoint: Endpoint, prompts: Sequence[Prompt]) -> list[list[int]] | None:
    try:
        return [served_tokens(endpoint, row.messages) for row in prompts]
    except UserError:  # a server without this path
        return None


def _read(model: Any, asked: Asked) -> list[float]:
    rows = refusal_log_odds(model.eval(), [row.id for row in asked.prompts], asked.ids, asked.openings)
    return [row["log_odds"] for row in rows]
