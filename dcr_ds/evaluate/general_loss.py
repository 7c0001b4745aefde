"""General loss: how well a model still predicts held-out general answers."""

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from dcr_ds.engine.distributed import Ranks, sum_over_ranks
from dcr_ds.engine.watch.progress import heartbeat
from dcr_ds.models.chat import Encoded

# Logits of a batch are tokens × vocabulary: 8192 × 150,000 in bfloat16 are 2.3 GiB, fit beside a 7B model.
MAX_BATCH_TOKENS = 8192


@torch.inference_mode()
def general_loss(
    model: PreTrainedModel, conversations: Sequence[Encoded], batch_size: int, pad_id: int, ranks: Ranks
) -> dict[str, float | int]:
    """Mean cross-entropy per supervised token over all conversations. All ranks.

    Every supervised token of the set weighs the same, however the conversations are batched or spread over
    ranks: sums and counts are added up, never means.
    """
    batches = loss_batches([len(conversation.ids) for conversation in conversations], batch_size)
    sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)  # loss, supervised tokens, conversations
    for batch in batches[ranks.rank :: ranks.world_size]:
        chosen = [conversations[index] for index in batch]
        loss, tokens = _batch_loss(model, chosen, pad_id)
        heartbeat("evaluate, loss on general answers")
        sums += torch.stack((loss, loss.new_tensor(tokens), loss.new_tensor(len(chosen)))).to(ranks.device)
    total, tokens, n = sum_over_ranks(sums, ranks).tolist()
    return {"loss": total / tokens, "tokens": int(tokens), "n": int(n)}


def loss_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, longest first, bounded in conversations and in padded tokens."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and len(batches[-1]) < min(batch_size, MAX_BATCH_TOKENS // lengths[batches[-1][0]]):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _batch_loss(model: PreTrainedModel, batch: list[Encoded], pad_id: int) -> tuple[torch.Tensor, int]:
    """Summed loss (float64) and number of supervised tokens of a batch.

    Padded on the right, where a causal model cannot see it from any real token; positions need no correction.
    """
    width = max(len(conversation.ids) for conversation in batch)
    ids = torch.tensor([c.ids + [pad_id] * (width - len(c.ids)) for c in batch], device=model.device)
    mask = torch.tensor([[1] * len(c.ids) + [0] * (width - len(c.ids)) for c in batch], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    total, tokens = torch.zeros((), dtype=torch.float64, device=model.device), 0
    for row, conversation in enumerate(batch):  # row by row: float32 logits of the whole batch would not fit
        start, end = conversation.prompt_tokens, len(conversation.ids)
        predicted = logits[row, start - 1 : end - 1].float()  # position t predicts token t + 1
        total += cross_entropy(predicted, ids[row, start:end], reduction="sum").double()
        tokens += end - start
    return total, tokens
