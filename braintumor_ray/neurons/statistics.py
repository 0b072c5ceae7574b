"""Which neurons correlate with which class: correlation, AUROC, multiple-testing correction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, mannwhitneyu
from scipy.stats import t as student

from braintumor_ray.errors import UsageError
from braintumor_ray.types import Floats

_COLUMNS_AT_A_TIME = 256  # neurons ranked together: bounds memory for large catalogs


@dataclass(frozen=True)
class NeuronStats:
    """Every neuron against every class; all arrays float64 (k, C), NaN for constant neurons.

    Attributes:
        classes: k names.
        r: point-biserial correlation of the activation with "is of this class", -1 to 1.
        r_q: its p-value (Student's t, n - 2 degrees of freedom) after Benjamini and Hochberg
            (1995) over all k * C tests.
        auroc: chance that a scan of the class excites the neuron more than another scan; ties
            count a half.
        auroc_q: the Mann-Whitney p-value, corrected likewise.
        mean_in: mean activation over scans of the class.
        mean_out: over all others.
    """

    classes: tuple[str, ...]
    r: Floats
    r_q: Floats
    auroc: Floats
    auroc_q: Floats
    mean_in: Floats
    mean_out: Floats

    def top(self, index: int, count: int) -> NDArray[np.int64]:
        """The neurons that correlate with a class, highest correlation first."""
        order = np.argsort(-np.nan_to_num(self.r[index], nan=-2.0), kind="stable")
        defined = order[np.isfinite(self.r[index][order])]
        return defined[:count].astype(np.int64)


def neuron_stats(activations: NDArray[np.floating], labels: Sequence[str]) -> NeuronStats:
    """Correlate neurons with classes, one class against the rest.

    Scans count as independent; where they are not (slices of a patient, duplicates), the q-values
    are too small and order neurons rather than test them.

    Args:
        activations: (n, C), finite.
        labels: class of each scan, (n,).

    Raises:
        UsageError: fewer than two classes or three scans, or lengths that differ.
    """
    names = tuple(sorted(set(labels)))
    if len(labels) != len(activations) or len(names) < 2 or len(labels) < 3:
        raise UsageError(
            f"{len(activations)} scans with {len(labels)} labels of {len(names)} classes: neurons "
            "are compared between two classes or more, on 3 scans or more"
        )
    x = np.asarray(activations, np.float64)
    constant = x.max(axis=0) == x.min(axis=0)
    truth = np.array([[label == name for label in labels] for name in names])
    r = _point_biserial(x, truth)
    auroc, auroc_p = _mann_whitney(x, truth)
    r_p = _p_of_correlation(r, len(x))
    for values in (r, r_p, auroc, auroc_p):
        values[:, constant] = np.nan
    means = [np.stack([x[mask].mean(axis=0) for mask in masks]) for masks in (truth, ~truth)]
    return NeuronStats(names, r, corrected(r_p), auroc, corrected(auroc_p), means[0], means[1])


def corrected(p: Floats) -> Floats:
    """Benjamini-Hochberg q-values of all p-values that are not NaN, same shape."""
    q = np.full(p.shape, np.nan)
    defined = np.isfinite(p)
    if defined.any():
        q[defined] = false_discovery_control(p[defined], method="bh")
    return q


def _point_biserial(x: Floats, truth: NDArray[np.bool_]) -> Floats:
    """Pearson's correlation of each column of x (n, C) with each row of truth (k, n)."""
    centered = x - x.mean(axis=0)
    flags = truth - truth.mean(axis=1, keepdims=True)
    scale = np.sqrt((flags**2).sum(axis=1))[:, None] * np.sqrt((centered**2).sum(axis=0))
    r = np.divide(flags @ centered, scale, out=np.full(scale.shape, np.nan), where=scale > 0)
    return np.clip(r, -1.0, 1.0)


def _p_of_correlation(r: Floats, n: int) -> Floats:
    """Two-sided p-value of r under no correlation."""
    with np.errstate(divide="ignore"):  # |r| = 1 has t = infinity and p = 0
        t = np.abs(r) * np.sqrt((n - 2) / (1 - r**2))
    return np.asarray(2 * student.sf(t, n - 2))


def _mann_whitney(x: Floats, truth: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    auroc = np.empty((len(truth), x.shape[1]))
    p = np.empty_like(auroc)
    for index, mask in enumerate(truth):
        pairs = int(mask.sum()) * int((~mask).sum())
        for start in range(0, x.shape[1], _COLUMNS_AT_A_TIME):
            part = slice(start, start + _COLUMNS_AT_A_TIME)
            test = mannwhitneyu(x[mask, part], x[~mask, part], axis=0, method="asymptotic")
            auroc[index, part], p[index, part] = test.statistic / pairs, test.pvalue
    return auroc, p
