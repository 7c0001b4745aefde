"""How far apart the two sets are at layer ℓ, on held-out prompts.

Legend: n prompts, D width.
"""

import torch
from dcr_kernels import similarity_stats


def separation(h: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor) -> dict[str, float]:
    """Cosine gap and AUC of held-out embeddings h [n, D], labels [n] (0 seemingly toxic, 1 toxic), pair numbers [n].

    The gap is the mean cosine within the two sets minus the mean cosine across them; within is the mean of the two
    sets' means, so that a larger set does not weigh more.
    """
    within = [similarity_stats(h[labels == label], labels[labels == label])[0] for label in (0, 1)]
    _, across = similarity_stats(h, labels)
    return {
        "gap": float((within[0] + within[1]) / 2 - across),
        "auc": class_mean_auc(h, labels, pairs),
        "within": float((within[0] + within[1]) / 2),
        "across": float(across),
    }


def class_mean_auc(h: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor) -> float:
    """How often the direction between the class means ranks a toxic prompt above a seemingly toxic one.

    Each couple of prompts is scored by the class means of the prompts of all other pairs, so that the figure is not
    flattered by the prompts it is measured on, nor turned round by their twins. Ties count half; where a class has no
    other pair the couple is not counted, and the figure is NaN where none is.
    """
    unit = torch.nn.functional.normalize(h.double(), dim=1)
    wins, couples = 0.0, 0
    for i in torch.nonzero(labels == 0).flatten():
        for j in torch.nonzero(labels == 1).flatten():
            others = (pairs != pairs[i]) & (pairs != pairs[j])
            first, second = unit[others & (labels == 0)], unit[others & (labels == 1)]
            if len(first) and len(second):
                score = torch.dot(second.mean(0) - first.mean(0), unit[j] - unit[i])
                wins += float(score > 0) + 0.5 * float(score == 0)
                couples += 1
    return wins / couples if couples else float("nan")
