"""General loss: the cross-entropy of held-out general answers."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from dcr_ds.engine.distributed import Ranks, sum_over_ranks
from dcr_ds.engine.watch.progress import heartbeat
from dcr_ds.models.chat import Encoded
from dcr_ds.models.likelihood import answer_nll, as_likelihood

MAX_BATCH_TOKENS = 8192


@torch.inference_mode()
def general_loss(
    model: PreTrainedModel, conversations: Sequence[Encoded], batch_size: int, ranks: Ranks
) -> dict[str, float | int]:
    """Mean cross-entropy per supervised token over all conversations. All ranks.

    Every supervised token of the set has the same weight, however the conversations are batched or spread over ranks.
    """
    batches = loss_batches([len(conversation.ids) for conversation in conversations], batch_size)
    sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)  # loss, supervised tokens, conversations
    with as_likelihood(model) as likelihood:
        for batch in batches[ranks.rank :: ranks.world_size]:
            own = [conversations[index] for index in batch]
            nll = answer_nll(likelihood, own, [True] * len(own), False, model.device, "none")
            heartbeat("evaluate, loss on general answers")
            sums += torch.tensor([nll.double().sum().item(), len(nll), len(own)], dtype=torch.float64).to(ranks.device)
    total, tokens, n = sum_over_ranks(sums, ranks).tolist()
    return {"loss": total / tokens, "tokens": int(tokens), "n": int(n)}


def loss_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, bounded in conversations and in padded tokens."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and len(batches[-1]) < min(batch_size, MAX_BATCH_TOKENS // lengths[batches[-1][0]]):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
