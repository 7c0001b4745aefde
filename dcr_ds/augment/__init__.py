"""Baselines that are training recipes: other training data made from those of a recipe, for a run of `train.py`."""
