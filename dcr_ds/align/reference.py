"""Log-probabilities of answers, and those under the reference: the model that the stage starts from.

The reference's are computed once, by the untrained engine before its first step, so that no second model is ever
loaded: with full parameters the weights are still the source's, and a new adapter (B = 0) leaves its base unchanged. A
file keeps them under a hash of everything that decides them.

Legend: B samples of a forward pass, N samples; A answers of a sample: 1, or 2 of a pair, the chosen one first.
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dcr_ds.engine.batching import Batching, forward_passes
from dcr_ds.engine.distributed import Ranks, broadcast_from_main, print_on_main, sum_over_ranks
from dcr_ds.models.chat import Encoded
from dcr_ds.models.hashes import weights_hash
from dcr_ds.models.likelihood import answer_nll
from dcr_ds.progress import heartbeat
from dcr_ds.recipe import ModelSection

Answers = Sequence[Encoded]  # of a sample, with the prompt


def token_nll(
    model, samples: Sequence[Answers], alive: Sequence[bool], packed: bool, device: torch.device
) -> list[torch.Tensor]:
    """−log π of the supervised tokens of each answer, sample after sample; 0 for samples that are not alive."""
    answers = [answer for sample in samples for answer in sample]
    are_alive = [is_alive for sample, is_alive in zip(samples, alive, strict=True) for _ in sample]
    nll = answer_nll(model, answers, are_alive, packed, device, "none")
    return list(nll.split([answer.num_supervised for answer in answers]))


def log_probs(
    model, samples: Sequence[Answers], alive: Sequence[bool], packed: bool, device: torch.device
) -> torch.Tensor:
    """log π(y|x) of the answers of each sample [B, A], in float32; 0 for samples that are not alive."""
    per_answer = token_nll(model, samples, alive, packed, device)
    return -torch.stack([tokens.sum() for tokens in per_answer]).view(len(samples), -1)


def reference_log_probs(
    engine, samples: Sequence[Answers], batching: Batching, file: Path, key: str, ranks: Ranks
) -> torch.Tensor:
    """log π_ref of the answers of each sample [N, A] on the CPU, from `file`, or computed and written. All ranks.

    Args:
        engine: as it was built, before a checkpoint is loaded.
        samples: may be computed when they are asked for.
        key: identifies the log-probabilities; only rank 0 reads it.
    """
    of = f"{len(samples)} {'pairs' if len(samples[0]) == 2 else 'answers'}"
    saved = _read(file, key) if ranks.is_main else None
    if broadcast_from_main(saved is not None, ranks):
        print_on_main(ranks, f"reference: {of}, read from {file}")
        return torch.tensor(broadcast_from_main(None if saved is None else saved.tolist(), ranks))
    print_on_main(ranks, f"reference: computing the log-probabilities of {of}")
    computed = compute(engine, samples, batching, ranks)
    if ranks.is_main:
        partial = file.with_name(f"{file.name}.partial")
        save_file({"log_probs": computed}, partial, metadata={"key": key})
        partial.replace(file)
    return computed


@torch.no_grad()
def compute(engine, samples: Sequence[Answers], batching: Batching, ranks: Ranks) -> torch.Tensor:
    """log π of the answers of each sample [N, A] on the CPU, each computed by one rank. All ranks.

    Without dropout; the engine is in training mode afterwards.

    Raises:
        RuntimeError: a sample was computed by no rank, or by two.
    """
    lengths = [sum(len(answer.ids) for answer in sample) for sample in samples]
    # the log-probabilities, and how often they were computed
    sums = torch.zeros(len(lengths), len(samples[0]) + 1, device=ranks.device)
    engine.eval()
    for group in forward_passes(range(len(lengths)), lengths, ranks.rank, ranks.world_size, batching):
        indices, alive = zip(*group, strict=True)
        heartbeat("align, log-probabilities of answers")
        log_p = log_probs(engine, [samples[index] for index in indices], alive, batching.packed, ranks.device)
        own = [position for position, is_alive in enumerate(alive) if is_alive]
        sums[[indices[position] for position in own]] += F.pad(log_p[own], (0, 1), value=1.0)
    engine.train()
    sums = sum_over_ranks(sums, ranks).cpu()
    if not (sums[:, -1] == 1).all():
        raise RuntimeError(f"reference: samples computed {sums[:, -1].unique().tolist()} times, not once")
    return sums[:, :-1].contiguous()


def reference_key(samples: Sequence[Answers], model: ModelSection, source: Path) -> str:
    """Hash of what decides the log-probabilities: weights, precision, and the tokens of data and template."""
    hasher = hashlib.sha256(json.dumps([weights_hash(source), model.dtype, model.quantize]).encode())
    for sample in samples:
        for answer in sample:
            hasher.update(array("q", [len(answer.ids), answer.prompt_tokens, *answer.ids]).tobytes())
    return hasher.hexdigest()


def _read(file: Path, key: str) -> torch.Tensor | None:
    """The log-probabilities stored in a file under a key; None if they do not exist or the file is damaged."""
    try:
        with safe_open(file, "pt") as stream:
            return stream.get_tensor("log_probs") if (stream.metadata() or {}).get("key") == key else None
    except (FileNotFoundError, SafetensorError):
        return None
