"""The two sets of stage 1 as the diagnoses take them: labels and pair numbers, in one order."""

from collections.abc import Sequence

import numpy as np

from dcr_ds.data.records import Prompt


def labels_and_pairs(seemingly_toxic: Sequence[Prompt], toxic: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] (0 seemingly toxic, 1 toxic) and pair numbers [n]; a prompt without a twin has a number of its own."""
    rows = [*seemingly_toxic, *toxic]
    labels = np.repeat([0, 1], [len(seemingly_toxic), len(toxic)])
    keys = [f"pair {row.pair}" if row.pair is not None else f"row {index}" for index, row in enumerate(rows)]
    return labels, np.unique(keys, return_inverse=True)[1]
