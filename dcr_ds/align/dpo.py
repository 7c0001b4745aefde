"""Direct preference optimisation: the better of two answers is made likelier than the worse, against a reference.

    r(y) = β (log π(y|x) − log π_ref(y|x)),   loss = −log σ(r(chosen) − r(rejected))

(Rafailov et al. 2023, arXiv 2305.18290, eq. 7). `sigmoid_norm` divides each log-ratio by the answer's number of tokens,
so that longer answers are not better for their length (Lambert et al. 2024, Tülu 3, arXiv 2411.15124).

Legend: B pairs of a forward pass, N pairs of the data; of the last axis, 2, the first is chosen, the second rejected.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from dcr_ds.align.sft import answer_nll, supervised_tokens
from dcr_ds.data.records import PreferenceSet
from dcr_ds.engine.batching import Batching, forward_passes
from dcr_ds.engine.distributed import Ranks, sum_over_ranks
from dcr_ds.errors import UserError
from dcr_ds.models.batches import to_device
from dcr_ds.models.chat import Encoded, encode_conversation
from dcr_ds.recipe import DpoSection


@dataclass(frozen=True, slots=True)
class Pair:
    """Two encoded conversations with one prompt."""

    chosen: Encoded
    rejected: Encoded

    @property
    def both(self) -> tuple[Encoded, Encoded]:
        return self.chosen, self.rejected

    @property
    def num_tokens(self) -> int:
        return len(self.chosen.ids) + len(self.rejected.ids)


@dataclass
class Pairs:
    """The pairs of one epoch; `ids` are the data rows' ids, in the same order."""

    samples: list[Pair]
    ids: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample, both answers and twice their prompt."""
        return [pair.num_tokens for pair in self.samples]

    @property
    def counts(self) -> dict[str, int]:
        """What the summary of the stage says of the data."""
        return {"num_pairs": len(self.samples)}


def encode_pairs(preferences: PreferenceSet, max_length: int, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Render both conversations of every pair, and leave out the pairs with one that is too long.

    Raises:
        UserError: no pair is short enough.
    """
    pairs = []
    for row in preferences.rows:
        answers = ({"role": "assistant", "content": text} for text in (row.chosen, row.rejected))
        pairs.append(Pair(*(encode_conversation(tokenizer, [*row.context, answer]) for answer in answers)))
    fits = [max(len(each.ids) for each in pair.both) <= max_length for pair in pairs]
    if not any(fits):
        raise UserError(f"data.preferences: no pair has at most align.max_length = {max_length} tokens; raise it")
    notes = [f"preferences: {sum(fits)} pairs"]
    if long := fits.count(False):
        notes.append(f"data.preferences: {long} of {len(fits)} pairs longer than {max_length} tokens left out")
    kept = [index for index, fit in enumerate(fits) if fit]
    return Pairs([pairs[index] for index in kept], [preferences.rows[index].id for index in kept], notes)


def log_probs(model, pairs: Sequence[Pair], alive: Sequence[bool], packed: bool, device: torch.device) -> torch.Tensor:
    """log π(y|x) of both answers of every pair [B, 2], in float32; 0 where the pair is dead."""
    answers = [answer for pair in pairs for answer in pair.both]
    nll = answer_nll(model, answers, [each for each in alive for _ in range(2)], packed, device, "none")
    of_answer = nll.split([supervised_tokens(answer) for answer in answers])
    return -torch.stack([tokens.sum() for tokens in of_answer]).view(-1, 2)


def preference_loss(
    log_p: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor, dpo: DpoSection
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of every pair [B] and the rewards r of its answers [B, 2].

    Args:
        log_p, reference: log-probabilities of the answers [B, 2] under the trained model and the reference.
        lengths: tokens of the answers [B, 2].
    """
    ratios = log_p - reference
    rewards = dpo.beta * (ratios / lengths if dpo.loss == "sigmoid_norm" else ratios)
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]), rewards


def dpo_step(
    engine, pairs: Pairs, reference: torch.Tensor, rows: list[int], batching: Batching, dpo: DpoSection, ranks: Ranks
) -> dict[str, Any]:
    """Accumulate the gradients of one optimizer step: the mean over all its pairs. All ranks.

    Args:
        reference: log-probabilities of all pairs [N, 2] under the reference, on the CPU.
    """
    sizes = [pairs.samples[row].num_tokens for row in rows]
    totals = torch.zeros(4, device=ranks.device)  # loss, rewards of chosen and rejected, pairs in the right order
    for group in forward_passes(rows, sizes, ranks.rank, ranks.world_size, batching):
        indices, alive = (list(each) for each in zip(*group, strict=True))
        batch = [pairs.samples[index] for index in indices]
        lengths = torch.tensor([[supervised_tokens(answer) for answer in pair.both] for pair in batch])
        weight = to_device(torch.tensor(alive, dtype=torch.float32), ranks.device)
        loss, rewards = preference_loss(
            log_probs(engine, batch, alive, batching.packed, ranks.device),
            to_device(reference[indices], ranks.device),
            to_device(lengths, ranks.device),
            dpo,
        )
        # DeepSpeed averages over the ranks; the mean is over the pairs of all of them
        engine.backward((loss * weight).sum() * (ranks.world_size / len(rows)), scale_wrt_gas=False)
        chosen, rejected = rewards.detach().unbind(1)
        totals += torch.stack([loss.detach(), chosen, rejected, (chosen > rejected).float()]) @ weight
    loss, chosen, rejected, accuracy = (sum_over_ranks(totals, ranks) / len(rows)).tolist()
    return {
        "loss": loss,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "margin": chosen - rejected,
        "accuracy": accuracy,
        "supervised_tokens": sum(supervised_tokens(each) for row in rows for each in pairs.samples[row].both),
        "step_tokens": sum(sizes),
    }
