"""Log-probabilities of the reference, which is the model that the stage starts from.

They are computed once, by the untrained engine before its first step, so that no second model is ever loaded: with full
parameters the weights are still the source's, and a new adapter (B = 0) leaves its base as it is. A file in the stage's
folder keeps them under a hash of all that decides them.

Legend: N pairs; of the last axis, 2, the first is chosen, the second rejected.
"""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dcr_ds.align.dpo import Pairs, log_probs
from dcr_ds.engine.batching import Batching, forward_passes
from dcr_ds.engine.distributed import Ranks, broadcast_from_main, print_on_main, sum_over_ranks
from dcr_ds.engine.watch.progress import heartbeat
from dcr_ds.models.checkpoint_files import weights_hash
from dcr_ds.recipe import ModelSection


def reference_log_probs(
    engine, pairs: Pairs, batching: Batching, model: ModelSection, source: Path, file: Path, ranks: Ranks
) -> torch.Tensor:
    """log π_ref of both answers of every pair [N, 2] on the CPU, from `file` or computed and kept there. All ranks.

    Args:
        engine: as it was built; nothing trained is loaded into it yet.
    """
    kept = None
    if ranks.is_main:
        key = reference_key(pairs, model, source)
        kept = _read(file, key)
    if broadcast_from_main(kept is not None, ranks):
        print_on_main(ranks, f"reference: {len(pairs.samples)} pairs, from {file}")
        return torch.tensor(broadcast_from_main(None if kept is None else kept.tolist(), ranks))
    print_on_main(ranks, f"reference: log-probabilities of {len(pairs.samples)} pairs")
    computed = compute(engine, pairs, batching, ranks)
    if ranks.is_main:
        partial = file.with_name(f"{file.name}.partial")
        save_file({"log_probs": computed}, partial, metadata={"key": key})
        partial.replace(file)
    return computed


@torch.no_grad()
def compute(engine, pairs: Pairs, batching: Batching, ranks: Ranks) -> torch.Tensor:
    """log π of both answers of every pair [N, 2] on the CPU, each computed by one rank. All ranks.

    Raises:
        RuntimeError: a pair was computed by no rank, or by two.
    """
    sizes = pairs.lengths
    found = torch.zeros(len(sizes), 3, device=ranks.device)  # both log-probabilities, and how often computed
    engine.eval()
    for group in forward_passes(range(len(sizes)), sizes, ranks.rank, ranks.world_size, batching):
        indices, alive = (list(each) for each in zip(*group, strict=True))
        batch = [pairs.samples[index] for index in indices]
        heartbeat("align, log-probabilities of the reference")
        log_p = log_probs(engine, batch, alive, batching.packed, ranks.device)
        mine = [position for position, is_alive in enumerate(alive) if is_alive]
        found[[indices[position] for position in mine]] += F.pad(log_p[mine], (0, 1), value=1.0)
    engine.train()
    found = sum_over_ranks(found, ranks).cpu()
    if not (found[:, 2] == 1).all():
        raise RuntimeError(f"reference: pairs computed {found[:, 2].unique().tolist()} times, not once")
    return found[:, :2].contiguous()


def reference_key(pairs: Pairs, model: ModelSection, source: Path) -> str:
    """A hash of what decides the log-probabilities: weights, their precision, and the tokens of data and template."""
    tokens = [[[each.ids, each.prompt_tokens] for each in pair.both] for pair in pairs.samples]
    decides = [weights_hash(source), model.dtype, model.quantize, tokens]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _read(file: Path, key: str) -> torch.Tensor | None:
    """What is kept under a key; None where nothing is, or it is damaged."""
    try:
        with safe_open(file, "pt") as stream:
            return stream.get_tensor("log_probs") if (stream.metadata() or {}).get("key") == key else None
    except (FileNotFoundError, SafetensorError):
        return None
