"""Separation of the two sets at layer ℓ, on held-out prompts.

Legend: n prompts, D width.
"""

import torch
from dcr_kernels import similarity_stats

from dcr_ds.discernment import couples


def separation(h: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor) -> dict[str, float]:
    """Cosine gap and AUC of held-out embeddings h [n, D], labels [n] (0 seemingly toxic, 1 toxic), pair numbers [n].

    The gap is the mean cosine within the two sets minus the mean cosine across them; within is the mean of the two
    sets' means, so that a larger set has no more weight.
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
    """AUC of the direction between the class means, toxic above seemingly toxic.

    Each couple of a toxic and a seemingly toxic prompt is scored with the class means of all other pairs, so that
    neither these prompts nor their twins bias the result. Ties count half. Couples for which a class has no other pair
    are left out; the AUC is NaN if none remains.
    """
    exact = h.detach().cpu()
    exact = exact if exact.dtype == torch.float64 else exact.float()  # numpy has no bfloat16
    return couples.class_mean_auc(exact.numpy(), labels.cpu().numpy(), pairs.cpu().numpy())
