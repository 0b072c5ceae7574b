"""Whether one model is better than another on the same scans."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from braintumor_ray.metrics.inputs import check_flags, check_same_length
from braintumor_ray.metrics.intervals import Interval, Statistic, bootstrap_interval


@dataclass(frozen=True)
class McNemar:
    """Counts of scans by which model is right, and the exact two-sided p-value."""

    both_correct: int
    only_a: int
    only_b: int
    both_wrong: int
    p_value: float


def mcnemar_exact(correct_a: NDArray[Any], correct_b: NDArray[Any]) -> McNemar:
    """Exact McNemar test (1947) of two models' correctness on the same scans.

    Under the null hypothesis the scans that one model alone has right fall to either model like
    a fair coin. It takes scans as independent: with several scans of one patient the p-value is
    too small, and ``paired_difference`` with patients as groups is the test to trust.

    Args:
        correct_a: model A is right, bool or 0/1, (n,).
        correct_b: model B is right, same scans, same order.

    Returns:
        The four counts and the p-value; 1 where the models never differ.

    Raises:
        MetricsError: empty, lengths that differ, or values other than 0 and 1.
    """
    a, b = check_flags(correct_a, "correct_a"), check_flags(correct_b, "correct_b")
    check_same_length(len(a), len(b), "correct_a", "correct_b")
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    differing = only_a + only_b
    p_value = float(binomtest(only_a, differing, 0.5).pvalue) if differing else 1.0
    return McNemar(int((a & b).sum()), only_a, only_b, int((~a & ~b).sum()), p_value)


def paired_difference(
    statistic: Statistic,
    groups: NDArray[Any],
    data_a: Sequence[NDArray[Any]],
    data_b: Sequence[NDArray[Any]],
    *,
    seed: int,
    n_boot: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Interval of statistic(A) - statistic(B), both on the same resampled groups.

    What is hard for both models cancels out, so it is narrower than two separate intervals would
    suggest; the models differ at this level where it does not contain 0.

    Args:
        statistic: called once with A's arrays and once with B's; None or NaN where undefined.
        groups: patient or duplicate-group ids, (n,).
        data_a: arrays of n rows for model A, for example (labels, predicted).
        data_b: arrays of n rows for model B, same scans, same order.
        seed: of the random draws.
        n_boot: number of resamples.
        level: coverage in (0, 1).

    Raises:
        MetricsError: no data, lengths that differ, ``n_boot`` below 1 or ``level`` outside (0, 1).
    """
    split = len(data_a)

    def difference(*arrays: NDArray[Any]) -> float | None:
        a, b = statistic(*arrays[:split]), statistic(*arrays[split:])
        return None if a is None or b is None else a - b

    arrays = [np.asarray(array) for array in (*data_a, *data_b)]
    return bootstrap_interval(difference, groups, *arrays, seed=seed, n_boot=n_boot, level=level)
