"""Confidence intervals of many means at once, by resampling groups."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.metrics import MetricsError
from braintumor_ray.metrics.inputs import check_groups
from braintumor_ray.metrics.intervals import Interval, _draws, _interval, _times_drawn


def bootstrap_means(
    values: NDArray[Any],
    groups: NDArray[Any],
    *,
    seed: int,
    n_boot: int = 1000,
    level: float = 0.95,
) -> list[Interval]:
    """Cluster bootstrap of the mean of each column; no loop over resamples.

    Draws the same groups as `bootstrap_interval` with the same seed, so the intervals agree.

    Args:
        values: finite, float (n, m).
        groups: patient or duplicate-group ids, (n,).
        seed: of the random draws.
        n_boot: number of resamples.
        level: coverage in (0, 1).

    Returns:
        m intervals, in the order of the columns.

    Raises:
        MetricsError: no rows, a value that is not finite, lengths that differ, `n_boot` below 1
            or `level` outside (0, 1).
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise MetricsError(
            f"means are taken of finite numbers (n, m), not of {array.shape} with "
            f"{np.count_nonzero(~np.isfinite(array))} missing; leave such rows out"
        )
    codes, n_groups = check_groups(groups, len(array))
    sums = np.zeros((n_groups, array.shape[1] + 1))
    np.add.at(sums, codes, np.column_stack([array, np.ones(len(array))]))
    totals = np.concatenate(
        [_times_drawn(draws) @ sums for draws in _draws(n_groups, n_boot, seed)]
    )
    means = totals[:, :-1] / totals[:, -1:]
    estimates = array.mean(axis=0).tolist()
    return [
        _interval(estimate, column, n_groups, level)
        for estimate, column in zip(estimates, means.T, strict=True)
    ]
