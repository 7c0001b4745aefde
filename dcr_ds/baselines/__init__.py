"""Training-free baselines: what each computes from a model and prompts (docs/baselines.md).

A weight edit becomes a plain model folder. A hook becomes a baseline folder; dcr_ds.models.hooks installs it.
"""
