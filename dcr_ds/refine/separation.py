"""How far apart the two sets are at layer ℓ, on held-out prompts.

Legend: n prompts, D width.
"""

import torch
from dcr_kernels import similarity_stats


def separation(h: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Cosine gap and AUC of held-out embeddings h [n, D], labels [n] (0 seemingly toxic, 1 toxic).

    The gap is the mean cosine within the two sets minus the mean cosine across them; within is the mean of the two
    sets' means, so that a larger set does not weigh more.
    """
    within = [similarity_stats(h[labels == label], labels[labels == label])[0] for label in (0, 1)]
    _, across = similarity_stats(h, labels)
    return {
        "gap": float((within[0] + within[1]) / 2 - across),
        "auc": class_mean_auc(h, labels),
        "within": float((within[0] + within[1]) / 2),
        "across": float(across),
    }


def class_mean_auc(h: torch.Tensor, labels: torch.Tensor) -> float:
    """How often the direction between the class means ranks a toxic prompt above a seemingly toxic one.

    Each pair of prompts is scored by the means of the others (both left out), so that the figure is not
    flattered by the prompts it is measured on. Ties count half.
    """
    unit = torch.nn.functional.normalize(h.double(), dim=1)
    first, second = unit[labels == 0], unit[labels == 1]
    n, m = len(first), len(second)
    wins = 0.0
    for i in range(n):
        mean_first = (first.sum(0) - first[i]) / max(n - 1, 1)  # [D]
        means_second = (second.sum(0) - second) / max(m - 1, 1)  # [m, D], each without its own prompt
        score = ((means_second - mean_first) * (second - first[i])).sum(1)  # [m]
        wins += float((score > 0).sum() + 0.5 * (score == 0).sum())
    return wins / (n * m)
