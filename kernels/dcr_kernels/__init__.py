"""Contrastive losses on pooled hidden states, exact across ranks, in memory linear in the batch."""

from .circle import circle_loss
from .pooling import pool
from .similarity import similarity_stats

__all__ = ["circle_loss", "pool", "similarity_stats"]
