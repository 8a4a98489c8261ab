# SPDX-License-Identifier: Apache-2.0
"""Area under the ROC curve. Thread safety: pure."""

import numpy as np
from numpy.typing import NDArray


def auc(labels: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    """Chance that a positive scores above a negative, ties counting half.

    Parameters
    ----------
    labels
        (n,) 0 or 1, at least one of each.
    scores
        (n,) finite.

    Returns
    -------
    float
        From the rank sum of the positives (Mann and Whitney 1947), in float64: equal scores give an
        equal value to the last digit, whatever order they come in.

    Raises
    ------
    ValueError
        A class is missing, or a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        raise ValueError(f"AUC needs both classes; there are {positives} positives of {len(labels)}")
    _, group, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2.0  # the mean rank of each group of ties, from 1
    rank_sum = float(rank[group][labels > 0].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
