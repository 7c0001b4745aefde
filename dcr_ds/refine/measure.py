"""Measure what stage 1 changes: separation of held-out prompts, drift of held-out general conversations."""

import torch

from dcr_ds.refine.embed import embed_all
from dcr_ds.refine.retain import drift
from dcr_ds.refine.separation import separation
from dcr_ds.refine.state import RefineState


def measure(state: RefineState) -> dict[str, float]:
    """Gap, AUC, similarities within and across the sets, and drift; the same on all ranks. All ranks."""
    prompts, ranks = state.prompts, state.ranks
    rows, labels, pairs = zip(*prompts.held_out, strict=True)
    h = embed_all(state.engine, rows, state.recipe.refine.pooling, prompts.num_shared, state.batching, ranks)
    figures = separation(h.cpu(), torch.tensor(labels), torch.tensor(pairs))
    figures["drift"] = drift(state.engine, prompts.held_out_general, state.held_out_anchors, state.batching, ranks)
    return {name: round(value, 6) for name, value in figures.items()}
