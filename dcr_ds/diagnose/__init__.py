"""Diagnosis of models: refusal log-odds, empirical NTK, layer probe, confound checks, PCA of activations."""
