# SPDX-License-Identifier: Apache-2.0
"""What two models' margins on the same rows say: gain in log loss and AUC, intervals, corrected p-values.

Both gains are paired. Their standard errors come from each row's influence: the difference of its losses,
and for the AUC its placement values (DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two
or more correlated receiver operating characteristic curves"). Influences are summed within groups first
(Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data"), so dependent rows do not count as
many. Corrections: Holm (1979), family-wise error under any dependence; Benjamini and Hochberg (1995), false
discovery rate. Thread safety: pure functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_cross.author.kernel.logistic import row_losses

__all__ = ["Estimate", "Gain", "adjust", "compare", "compare_losses", "z_value"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its standard error."""

    value: float
    error: float

    def interval(self, z: float) -> tuple[float, float]:
        """value ± z standard errors."""
        return self.value - z * self.error, self.value + z * self.error

    @property
    def p_value(self) -> float:
        """Two-sided, of no gain, as the intervals are; 1 where nothing was gained."""
        if self.value <= 0 or self.error == 0.0:
            return 0.0 if self.value > 0 else 1.0
        return 2 * NormalDist().cdf(-self.value / self.error)

    def to_json(self, z: float) -> dict[str, float]:
        """Plain values."""
        low, high = self.interval(z)
        return {"value": self.value, "standard_error": self.error, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class Gain:
    """What the second model is better by: the log loss falls, the AUC rises.

    Attributes
    ----------
    log_loss
        In nats per row, positive if better.
    auc
        Positive if better.
    base_log_loss, base_auc
        Of the first model.
    rows
        Rows that were compared.
    """

    log_loss: Estimate
    auc: Estimate
    base_log_loss: float
    base_auc: float
    rows: int

    def to_json(self, z: float) -> dict[str, Any]:
        """Plain values; intervals at z standard errors."""
        return {
            "log_loss_gain": self.log_loss.to_json(z),
            "auc_gain": self.auc.to_json(z),
            "base_log_loss": self.base_log_loss,
            "base_auc": self.base_auc,
        }


def compare(base: Floats, better: Floats, labels: Floats, groups: NDArray[np.int64] | None = None) -> Gain:
    """Hold two models' margins of the same rows against each other.

    Parameters
    ----------
    base, better
        (N,) float64 margins of the two models.
    labels
        (N,) float64, 0 or 1, both present.
    groups
        (N,) codes of rows that are not independent, or None.

    Returns
    -------
    Gain
    """
    loss_gain, base_loss = compare_losses(base, better, labels, groups)
    base_auc, base_influence = _auc(base, labels)
    other_auc, other_influence = _auc(better, labels)
    auc_gain = Estimate(other_auc - base_auc, _error(other_influence - base_influence, groups))
    return Gain(loss_gain, auc_gain, base_loss, base_auc, len(base))


def compare_losses(
    base: Floats, better: Floats, labels: Floats, groups: NDArray[np.int64] | None = None
) -> tuple[Estimate, float]:
    """The gain in log loss alone, and the first model's log loss; arguments as of `compare`."""
    losses, others = np.empty(len(base)), np.empty(len(base))
    row_losses(base, labels, losses)
    row_losses(better, labels, others)
    difference = losses - others
    value = float(difference.mean())
    return Estimate(value, _error((difference - value) / len(base), groups)), float(losses.mean())


def _error(influence: Floats, groups: NDArray[np.int64] | None) -> float:
    """Root of the summed squares of the groups' influences, with the small-sample factor n / (n - 1)."""
    count = len(influence)
    if groups is not None:
        influence = np.bincount(groups - groups.min(), influence).astype(np.float64)
        count = len(np.unique(groups))
    return float(np.sqrt((influence**2).sum() * count / max(count - 1, 1)))


def _auc(margins: Floats, labels: Floats) -> tuple[float, Floats]:
    """Area under the curve, and each row's influence on it; ties count half."""
    positive = labels == 1
    count = int(positive.sum())
    others = len(labels) - count
    within = np.empty(len(labels))
    within[positive], within[~positive] = _mid_ranks(margins[positive]), _mid_ranks(margins[~positive])
    # the rank among all, less that among one's own, counts those of the other label below
    below = _mid_ranks(margins) - within
    placement = np.where(positive, below / others, 1.0 - below / count)
    area = float(placement[positive].mean())
    influence = np.where(positive, (placement - area) / count, (placement - area) / others)
    return area, influence


def _mid_ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    return ranks


def adjust(p_values: Sequence[float], correction: str, family: int | None = None) -> list[float]:
    """Correct p-values for the number of tests.

    Parameters
    ----------
    p_values
        One per test.
    correction
        `holm` or `bh`.
    family
        Number of tests planned, where not all were done; those left out count as p = 1.

    Returns
    -------
    Adjusted p-values in the same order, at most 1.
    """
    count = max(family or 0, len(p_values))
    order = np.argsort(p_values, kind="stable")
    out = [1.0] * len(p_values)
    if correction == "holm":
        highest = 0.0
        for place, test in enumerate(order):
            highest = max(highest, (count - place) * p_values[test])
            out[test] = min(highest, 1.0)
        return out
    if correction != "bh":
        raise ValueError(f"correction is {correction!r}; it must be holm or bh")
    lowest = 1.0
    for place in range(len(order) - 1, -1, -1):
        lowest = min(lowest, count * p_values[order[place]] / (place + 1))
        out[order[place]] = lowest
    return out


def z_value(level: float, family: int) -> float:
    """Standard errors on each side; all of `family` intervals cover with chance `level` (Bonferroni)."""
    return NormalDist().inv_cdf(1 - (1 - level) / (2 * max(family, 1)))
