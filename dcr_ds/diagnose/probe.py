"""Held-out scores of a ridge-penalised logistic regression, fitted in the space of the Gram matrix.

Legend: n prompts, of which m are fitted, D features. With n well below D the n×n Gram matrix is the smaller problem.
"""

import numpy as np

NUM_FOLDS = 5
PENALTY = 0.1  # λ, for features whose rows have squared length 1 on average
MAX_NEWTON_STEPS = 50
TOLERANCE = 1e-8


def standardised_gram(features: np.ndarray) -> np.ndarray:
    """Gram matrix [n, n] in float64 of features [n, D] with mean 0 and variance 1 each, divided by D.

    Its diagonal is 1 on average for any D. Constant features count as 0. Labels are not used, so that held-out prompts
    may be included.
    """
    features = features.astype(np.float64)
    features -= features.mean(axis=0)
    spread = features.std(axis=0)
    varies = spread > 1e-12 * np.abs(features).max(initial=1e-300)
    features = features[:, varies] / spread[varies]
    return features @ features.T / max(1, features.shape[1])


def held_out_scores(gram: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Score [n] of each prompt by the regression that was fitted without its fold; larger for label 1.

    Scores of two folds have no common scale; `auc_interval` compares within folds.

    Args:
        gram: [n, n] inner products of the features.
        labels: [n] of 0 and 1.
        folds: [n] integers.
    """
    gram = gram + 1  # a constant feature: the intercept, penalised like the others
    scores = np.full(len(gram), np.nan)
    for fold in np.unique(folds):
        fitted, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        weights = fit(gram[np.ix_(fitted, fitted)], labels[fitted], PENALTY)
        scores[held_out] = gram[np.ix_(held_out, fitted)] @ weights
    return scores


def fit(gram: np.ndarray, labels: np.ndarray, penalty: float) -> np.ndarray:
    """Dual weights α [m] of logistic regression; the score of a prompt is Σ α_i ⟨x_i, x⟩.

    Minimises Σ_i c_i log(1 + exp(−y_i f_i)) + λ/2 ‖w‖² with f = gram·α, w = Σ α_i x_i and y = ±1. c_i = m / (2 m_label)
    gives both labels the same total weight. Newton's method as for the mode of a Gaussian process classifier with the
    covariance gram / λ (Rasmussen and Williams, Algorithm 3.1).
    """
    targets = labels.astype(np.float64)
    counts = np.bincount(labels, minlength=2)
    share = len(labels) / (2 * np.maximum(counts, 1))[labels]
    covariance = gram / penalty
    scores, dual = np.zeros(len(labels)), np.zeros(len(labels))
    for _ in range(MAX_NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-scores))
        curvature = np.maximum(share * probability * (1 - probability), 1e-12)
        root = np.sqrt(curvature)
        right = curvature * scores + share * (targets - probability)
        system = np.eye(len(labels)) + root[:, None] * covariance * root[None, :]
        dual = right - root * np.linalg.solve(system, root * (covariance @ right))
        previous, scores = scores, covariance @ dual
        if np.abs(scores - previous).max() < TOLERANCE * (1 + np.abs(scores).max()):
            break
    return dual / penalty
