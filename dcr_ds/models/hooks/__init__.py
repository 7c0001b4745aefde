"""Hooks: baselines that change a model while it answers, and leave its weights as they are.

A baseline folder (record.py) names its source model, as an adapter's folder does; `load_model` (load.py) loads the
source and installs the hook. `answering` (context.py) tells a hook where the prompts of a batch end.
"""
