"""The SFT objective: −Σ log π(y_t | x, y_<t) over supervised tokens.

Legend: B · T tokens of a forward pass, padding included, n supervised tokens.
"""

from collections.abc import Sequence

import torch

from dcr_ds.models.batches import to_device, token_batch
from dcr_ds.models.chat import Encoded
from dcr_ds.models.likelihood import IGNORED, Reduction


def summed_loss(
    model, samples: Sequence[Encoded], alive: Sequence[bool], packed: bool, device: torch.device
) -> torch.Tensor:
    """The cross-entropy summed over the supervised tokens of a forward pass, in float32.

    A sum, not a mean: the mean is over the tokens of the whole optimizer step, which the caller knows.
    """
    return answer_nll(model, samples, alive, packed, device, "sum")


def answer_nll(
    model,
    samples: Sequence[Encoded],
    alive: Sequence[bool],
    packed: bool,
    device: torch.device,
    reduction: Reduction,
) -> torch.Tensor:
    """−log π of the supervised tokens of a forward pass, one sample's after the other's [n], or their sum; in float32.

    Args:
        model: a Likelihood, or an engine around one.
        alive: of a dead sample every token gives 0.
        packed: one row without padding, rather than a row a sample.
    """
    batch = token_batch([sample.ids for sample in samples], packed, device)
    where, targets = (to_device(each, device) for each in supervised_positions(samples, alive, batch.starts))
    return model(where=where, targets=targets, reduction=reduction, **batch.inputs)


def supervised_positions(
    samples: Sequence[Encoded], alive: Sequence[bool], starts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in the flattened [B · T] each supervised token is predicted, one before its own place, and the tokens [n].

    The targets of dead samples are IGNORED rather than left out: there is always something to compute.
    """
    where, targets = [], []
    for sample, is_alive, start in zip(samples, alive, starts, strict=True):
        answer = sample.ids[sample.prompt_tokens :]
        first = start + sample.prompt_tokens - 1
        where += range(first, first + len(answer))
        targets += answer if is_alive else [IGNORED] * len(answer)
    return torch.tensor(where), torch.tensor(targets)


def supervised_tokens(sample: Encoded) -> int:
    return len(sample.ids) - sample.prompt_tokens
