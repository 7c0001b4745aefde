"""What stage 2 minimises: the interface that supervised fine-tuning and the methods on preferences share."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from dcr_ds.align.dpo import DpoObjective
from dcr_ds.align.kto import KtoObjective
from dcr_ds.align.labelled import Labelled, encode_labelled
from dcr_ds.align.mix import Mix, encode_mix
from dcr_ds.align.orpo import OrpoObjective
from dcr_ds.align.pairs import Pairs, encode_pairs
from dcr_ds.align.sft import SftObjective
from dcr_ds.align.simpo import SimpoObjective
from dcr_ds.data.load import RunData
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.chat import Encoded
from dcr_ds.recipe import Recipe


class Samples(Protocol):
    """The encoded samples of one epoch.

    Attributes:
        ids: ids of the data rows, in the order of `samples`.
        notes: what was left out, for the log.
        counts: sizes of the data for the summary of the stage.
    """

    @property
    def samples(self) -> Sequence[Any]: ...

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def notes(self) -> list[str]: ...

    @property
    def counts(self) -> dict[str, int]: ...

    def answers(self, row: int) -> tuple[Encoded, ...]:
        """The conversations of a sample: one, or the two of a pair."""
        ...

    def num_tokens(self, row: int) -> int:
        """Tokens of a sample in a forward pass."""
        ...


class Objective(Protocol):
    """A loss over samples: a mean over a step's supervised tokens, pairs or answers, on all ranks and micro-batches."""

    @property
    def data(self) -> Samples: ...

    def begin_step(self, engine, step: int, rows: Sequence[int], batching: Batching, ranks: Ranks) -> None:
        """Set what the loss of each sample needs of all samples of the step. All ranks.

        Args:
            step: counted from 0.
            rows: its samples.
        """
        ...

    def num_terms(self, rows: Sequence[int]) -> int:
        """Number of terms in the mean that is the loss of a step."""
        ...

    def summed_loss(
        self, model, rows: Sequence[int], alive: Sequence[bool], packed: bool, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over the terms of a forward pass, with its graph, and the sums behind `figures`."""
        ...

    def figures(self, sums: torch.Tensor, rows: Sequence[int]) -> dict[str, Any]:
        """The metrics of a step, including `loss`, from the sums over its forward passes and ranks."""
        ...


AnySamples = Mix | Pairs | Labelled
WithReference = DpoObjective | KtoObjective
# the samples of a method are those of `encode_samples`
OBJECTIVES: dict[str, Callable[[Any, Recipe], Objective]] = {
    "sft": lambda samples, recipe: SftObjective(samples),
    "dpo": DpoObjective,
    "kto": KtoObjective,
    "orpo": OrpoObjective,
    "simpo": SimpoObjective,
}


def encode_samples(recipe: Recipe, data: RunData, tokenizer: PreTrainedTokenizerBase) -> AnySamples:
    """The samples of `align.method`.

    Raises:
        UserError: no sample is short enough.
    """
    stage = recipe.align
    if stage.method == "sft":
        return encode_mix(stage, data, tokenizer, recipe.seed)
    preferences: Any = data.preferences  # load_data reads pairs, or labelled answers for KTO
    if stage.method == "kto":
        return encode_labelled(stage, preferences, tokenizer)
    return encode_pairs(preferences, stage.max_length, tokenizer)


def objective_of(recipe: Recipe, samples: AnySamples) -> Objective:
    """The objective of `align.method` over its samples."""
    return OBJECTIVES[recipe.align.method](samples, recipe)
