"""General loss: how well a model predicts held-out general answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dcr_ds.data import Conversation
from dcr_ds.engine.distributed import Ranks, sum_over_ranks
from dcr_ds.errors import UserError
from dcr_ds.files import hash_of, read_object
from dcr_ds.models.batches import to_device, token_batch
from dcr_ds.models.chat import Encoded, encode_conversation
from dcr_ds.models.hooks.context import answering
from dcr_ds.models.hooks.knob import Knob, knob_of
from dcr_ds.models.likelihood import Likelihood, answer_nll, as_likelihood, supervised_positions
from dcr_ds.models.rows import encode_row
from dcr_ds.models.tokenizer import template_hash
from dcr_ds.progress import heartbeat

MAX_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class GeneralLoss:
    """The file of a model's general loss, and the encoded conversations that it is measured on."""

    file: Path
    conversations: list[Encoded]
    too_long: int  # conversations that exceed the model's context
    settings_hash: str

    @property
    def is_complete(self) -> bool:
        return read_object(self.file).get("settings_hash") == self.settings_hash


def prepare_general_loss(
    file: Path,
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    model_identity: dict[str, str],
    context: int | None,
) -> GeneralLoss:
    """Encode the conversations; those that exceed the context are left out.

    Raises:
        UserError: none fits the context, or one cannot be encoded.
    """
    encoded = [
        _of_the_data(encode_row("evaluate.general", row, lambda row: encode_conversation(tokenizer, row.messages)))
        for row in conversations
    ]
    fitting = [conversation for conversation in encoded if context is None or len(conversation.ids) <= context]
    if not fitting:
        raise UserError(
            f"evaluate.general: none of the {len(encoded)} conversations fits the model's context of {context} tokens; "
            "use shorter ones"
        )
    settings = {
        "model": model_identity,
        "template": template_hash(tokenizer),
        "ids": [[conversation.ids, conversation.prompt_tokens] for conversation in fitting],
    }
    return GeneralLoss(file, fitting, len(encoded) - len(fitting), hash_of(settings))


def _of_the_data(conversation: Encoded) -> Encoded:
    """A conversation whose loss leaves out the end of an empty block of reasoning, which is not an answer."""
    return replace(conversation, prompt_tokens=conversation.prompt_tokens + conversation.added_tokens, added_tokens=0)


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
        for batch in batches[ranks.copy :: ranks.copies]:
            own = [conversations[index] for index in batch]
            with answering(model, [conversation.ids[: conversation.prompt_tokens] for conversation in own]):
                nll = _nll(likelihood, own, knob_of(model), model.device)
            heartbeat("evaluate, loss on general answers")
            if ranks.is_first_of_copy:
                counts = [nll.double().sum().item(), len(nll), len(own)]
                sums += torch.tensor(counts, dtype=torch.float64).to(ranks.device)
    total, tokens, n = sum_over_ranks(sums, ranks).tolist()
    return {"loss": total / tokens, "tokens": int(tokens), "n": int(n)}


def _nll(likelihood: Likelihood, own: Sequence[Encoded], knob: Knob | None, device: torch.device) -> torch.Tensor:
    """−log π of the supervised tokens [n]. With a knob, whose logits the head does not have, also those it raises."""
    alive = [True] * len(own)
    if knob is None:
        return answer_nll(likelihood, own, alive, False, device, "none")
    batch = token_batch([sample.ids for sample in own], False, device)
    where, targets = supervised_positions(own, alive, batch.starts)
    answers = [sample.num_supervised for sample in own]
    first = torch.tensor(answers).cumsum(0) - torch.tensor(answers)  # [B] in the supervised tokens
    where = torch.cat([where, where[first].repeat_interleave(len(knob.tokens))])
    targets = torch.cat([targets, torch.tensor(knob.tokens).repeat(len(own))])
    where, targets, first = (to_device(part, device) for part in (where, targets, first))
    nll = likelihood(where=where, targets=targets, reduction="none", **batch.inputs)
    nll, raised = nll[: sum(answers)], nll[sum(answers) :].unflatten(0, (len(own), -1))
    nll[first] += knob.loss_change(targets[first], -raised)
    return nll


def loss_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, bounded in conversations and in padded tokens."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and len(batches[-1]) < min(batch_size, MAX_BATCH_TOKENS // lengths[batches[-1][0]]):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
