"""The SFT objective: −Σ log π(y_t | x, y_<t) over supervised tokens.

Legend: B samples, T tokens of the longest, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from dcr_ds.engine.batches import pad_right
from dcr_ds.models.chat import Encoded

IGNORED = -100


def summed_loss(
    model, samples: Sequence[Encoded], alive: Sequence[bool], pad_id: int, device: torch.device
) -> torch.Tensor:
    """The cross-entropy summed over the supervised tokens of a micro-batch, in float32.

    A sum, not a mean: the mean is over the tokens of the whole optimizer step, which the caller knows. Logits are
    computed from the first supervised position of the batch on, not for the prompts.
    """
    ids, mask = pad_right([sample.ids for sample in samples], pad_id, device)
    labels = torch.full_like(ids, IGNORED)  # [B, T]
    for row, (sample, is_alive) in enumerate(zip(samples, alive, strict=True)):
        if is_alive:
            labels[row, sample.prompt_tokens : len(sample.ids)] = ids[row, sample.prompt_tokens : len(sample.ids)]
    first = min(sample.prompt_tokens for sample in samples) - 1  # its logits predict the first supervised token
    kept = ids.shape[1] - first
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=kept, use_cache=False).logits  # [B, kept, V]
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, first + 1 :].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def supervised_tokens(sample: Encoded) -> int:
    return len(sample.ids) - sample.prompt_tokens
