"""dcr-ds: cure over-refusal with contrastive refinement before safety alignment, on DeepSpeed."""

__version__ = "0.1.0"
