"""Conformal prediction sets: the classes that a scan may have, with a stated coverage.

Class-conditional split conformal prediction (Vovk, Lindsay and Asparin 2003; Vovk 2012) with the
score 1 - probability of the class (Sadinle, Lei and Wasserman 2019). A class is in the set where
its probability reaches the threshold of the class. Of the scans of each class, at least the
stated share has its true class in the set, as long as new scans are like the calibration scans.
A set may be empty: no class is probable enough.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv  # scipy.stats costs every predictor half a second

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.inputs import check_groups, check_probs
from braintumor_ray.types import Bools, Floats

if TYPE_CHECKING:
    from braintumor_ray.models.bundle import SetFields

COVERAGE = 0.9
# The coverage that one calibration set gives varies. With this confidence it is at most SLACK
# below the stated one; without, small classes would fall short in many runs.
SLACK, CONFIDENCE = 0.05, 0.85
TAILS = (0.025, 0.975)
_ROUNDING = 1e-9  # 0.9 * 10 is 9, not a little more
_FLOAT32 = 1 - 1e-6  # the predictor's float32 may be a little below the calibration's float64


@dataclass(frozen=True)
class SetRule:
    """Which classes are in a prediction set.

    Attributes:
        coverage: share of the scans of each class whose set holds the class.
        thresholds: least probability of each class that is in the set; 0: always in it.
        groups: independent calibration groups of each class.
    """

    coverage: float
    thresholds: tuple[float, ...]
    groups: tuple[int, ...]

    def describe(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """A row per class for people: `class`, `groups`, `threshold`, `expected`, `low`, `high`.

        `expected` is the mean coverage over calibration sets of this size; `low` and `high`
        bound that of 95% of them. All are 1 where the class is in every set.
        """
        rows = []
        for name, count, threshold in zip(class_names, self.groups, self.thresholds, strict=True):
            place = _rank(count, self.coverage)
            known = place <= count
            low, high = betaincinv(place, count + 1 - place, TAILS) if known else (1.0, 1.0)
            rows.append(
                {
                    "class": name,
                    "groups": count,
                    "threshold": threshold,
                    "expected": place / (count + 1) if known else 1.0,
                    "low": float(low),
                    "high": float(high),
                }
            )
        return rows

    def warnings(self, class_names: Sequence[str]) -> list[str]:
        """A sentence for each class with too few calibration scans for the coverage."""
        least = fewest_groups(self.coverage)
        return [
            f"prediction sets: class '{name}' has {count} independent validation scans, and "
            f"coverage {self.coverage:g} needs {least}: '{name}' is in every set; "
            "use a larger validation split, or a lower set_coverage"
            for name, count in zip(class_names, self.groups, strict=True)
            if count < least
        ]


def fit_sets(
    labels: NDArray[Any],
    probs: NDArray[Any],
    coverage: float = COVERAGE,
    groups: NDArray[Any] | None = None,
) -> SetRule:
    """Choose the thresholds of prediction sets on calibration scans.

    The threshold of a class is an order statistic of its probability among the scans of the class.
    Its rank is the usual ceil((n + 1) * coverage), or the next one that reaches `coverage - SLACK`
    with `CONFIDENCE` (the coverage follows a beta distribution). n counts independent groups:
    copies of one scan are not further evidence.

    Args:
        labels: class indices, int (n,).
        probs: probabilities as the bundle gives them, float (n, k).
        coverage: in (0, 1).
        groups: patient or duplicate-group ids, (n,); None: every scan is one of its own.

    Raises:
        MetricsError: the inputs do not fit, or `coverage` is not in (0, 1).
    """
    if not 0 < coverage < 1:
        raise MetricsError(f"coverage {coverage} is not in (0, 1); 0.9 is usual")
    classes, array = check_probs(probs, labels)
    ids = np.arange(len(classes)) if groups is None else check_groups(groups, len(classes))[0]
    thresholds, counts = [], []
    for index in range(array.shape[1]):
        own = classes == index
        count = len(np.unique(ids[own]))
        thresholds.append(_threshold(array[own, index], count, coverage))
        counts.append(count)
    return SetRule(coverage, tuple(thresholds), tuple(counts))


def set_rule(sets: "SetFields") -> SetRule:
    """The rule that a bundle keeps."""
    return SetRule(sets.coverage, sets.thresholds, sets.groups)


def in_set(probs: NDArray[Any], thresholds: Sequence[float]) -> Bools:
    """Which classes are in the sets, bool (n, k), of probabilities float32 (n, k)."""
    return np.asarray(np.asarray(probs, np.float32) >= np.array(thresholds, np.float32))


def named_sets(
    probs: NDArray[Any], thresholds: Sequence[float], class_names: Sequence[str]
) -> list[list[str]]:
    """The sets as names, in the order of the classes."""
    return [
        [name for name, inside in zip(class_names, row, strict=True) if inside]
        for row in in_set(probs, thresholds).tolist()
    ]


def fewest_groups(coverage: float) -> int:
    """Least number of independent calibration scans of a class for which it can be left out."""
    count = 1
    while _rank(count, coverage) > count:
        count += 1
    return count


def _rank(count: int, coverage: float) -> int:
    """Place of the threshold among `count` descending probabilities, from 1; more: none."""
    place = max(1, math.ceil((count + 1) * coverage - _ROUNDING))
    while place <= count and betainc(place, count + 1 - place, coverage - SLACK) > 1 - CONFIDENCE:
        place += 1
    return place


def _threshold(own: Floats, count: int, coverage: float) -> float:
    """The least probability with which a class is in the set, from its scans' probabilities."""
    place = _rank(count, coverage)
    if place > count:
        return 0.0
    scans = math.ceil(place / (count + 1) * (len(own) + 1) - _ROUNDING)
    return float(np.sort(own)[::-1][min(scans, len(own)) - 1]) * _FLOAT32
