"""A server of a model on this machine that lives as long as the evaluation needs it."""
