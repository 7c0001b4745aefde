"""Log-probabilities of answers, and those under the reference: the model that the stage starts from.

The reference's are computed once, by the untrained engine before its first step, so that no second model is ever
loaded: with full parameters the weights are still the source's, and a new adapter (B = 0) leaves its base unchanged. A
file keeps them under a hash of everything that decides them.

Legend: B pairs of a forward pass, N pairs of the data; in the last axis of 2, chosen comes before rejected.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dcr_ds.align.pairs import Pair, Pairs
from dcr_ds.engine.batching import Batching, forward_passes
from dcr_ds.engine.distributed import Ranks, broadcast_from_main, print_on_main, sum_over_ranks
from dcr_ds.models.hashes import weights_hash
from dcr_ds.models.likelihood import answer_nll
from dcr_ds.progress import heartbeat
from dcr_ds.recipe import ModelSection


def log_probs(model, pairs: Sequence[Pair], alive: Sequence[bool], packed: bool, device: torch.device) -> torch.Tensor:
    """log π(y|x) of both answers of each pair [B, 2], in float32; 0 for pairs that are not alive."""
    answers = [answer for pair in pairs for answer in pair.both]
    nll = answer_nll(model, answers, [is_alive for is_alive in alive for _ in range(2)], packed, device, "none")
    per_answer = nll.split([answer.num_supervised for answer in answers])
    return -torch.stack([tokens.sum() for tokens in per_answer]).view(-1, 2)


def reference_log_probs(engine, pairs: Pairs, batching: Batching, file: Path, key: str, ranks: Ranks) -> torch.Tensor:
    """log π_ref of both answers of each pair [N, 2] on the CPU, read from `file` or computed and written. All ranks.

    Args:
        engine: as it was built, before a checkpoint is loaded.
        key: identifies the log-probabilities; only rank 0 reads it.
    """
    saved = _read(file, key) if ranks.is_main else None
    if broadcast_from_main(saved is not None, ranks):
        print_on_main(ranks, f"reference: {len(pairs.samples)} pairs, read from {file}")
        return torch.tensor(broadcast_from_main(None if saved is None else saved.tolist(), ranks))
    print_on_main(ranks, f"reference: computing the log-probabilities of {len(pairs.samples)} pairs")
    computed = compute(engine, pairs, batching, ranks)
    if ranks.is_main:
        partial = file.with_name(f"{file.name}.partial")
        save_file({"log_probs": computed}, partial, metadata={"key": key})
        partial.replace(file)
    return computed


@torch.no_grad()
def compute(engine, pairs: Pairs, batching: Batching, ranks: Ranks) -> torch.Tensor:
    """log π of both answers of each pair [N, 2] on the CPU, each computed by one rank. All ranks.

    Raises:
        RuntimeError: a pair was computed by no rank, or by two.
    """
    lengths = [pair.num_tokens for pair in pairs.samples]
    sums = torch.zeros(len(lengths), 3, device=ranks.device)  # both log-probabilities, and how often computed
    engine.eval()
    for group in forward_passes(range(len(lengths)), lengths, ranks.rank, ranks.world_size, batching):
        indices, alive = zip(*group, strict=True)
        heartbeat("align, log-probabilities of the reference")
        log_p = log_probs(engine, [pairs.samples[index] for index in indices], alive, batching.packed, ranks.device)
        own = [position for position, is_alive in enumerate(alive) if is_alive]
        sums[[indices[position] for position in own]] += F.pad(log_p[own], (0, 1), value=1.0)
    engine.train()
    sums = sum_over_ranks(sums, ranks).cpu()
    if not (sums[:, 2] == 1).all():
        raise RuntimeError(f"reference: pairs computed {sums[:, 2].unique().tolist()} times, not once")
    return sums[:, :2].contiguous()


def reference_key(pairs: Pairs, model: ModelSection, source: Path) -> str:
    """Hash of what decides the log-probabilities: weights, precision, and the tokens of data and template."""
    tokens = [[[answer.ids, answer.prompt_tokens] for answer in pair.both] for pair in pairs.samples]
    decides = [weights_hash(source), model.dtype, model.quantize, tokens]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _read(file: Path, key: str) -> torch.Tensor | None:
    """The log-probabilities stored in a file under a key; None if they do not exist or the file is damaged."""
    try:
        with safe_open(file, "pt") as stream:
            return stream.get_tensor("log_probs") if (stream.metadata() or {}).get("key") == key else None
    except (FileNotFoundError, SafetensorError):
        return None
