"""Train language models that refuse harmful prompts without refusing harmless ones (DCR on DeepSpeed)."""

__version__ = "0.1.0"
