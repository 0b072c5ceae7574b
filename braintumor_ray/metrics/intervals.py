"""Confidence intervals by resampling groups: scans of one patient are not independent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.classification import auroc
from braintumor_ray.metrics.inputs import (
    binary_view,
    check_binary,
    check_groups,
    check_labels,
    check_probs,
    check_same_length,
    check_threshold,
)
from braintumor_ray.types import Floats, Ints

Statistic = Callable[..., float | None]
TableStatistic = Callable[[Floats], Floats]

# Group draws are made in blocks of about this many numbers (16 MB) whatever n_boot is.
BLOCK = 2_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile bootstrap interval.

    ``low`` and ``high`` are None where the estimate is undefined, where no resample defines it,
    or where there is only one group, so that the spread between groups is unknown.
    ``n_undefined`` of the ``n_boot`` resamples did not define the statistic and were left out.
    """

    estimate: float | None
    low: float | None
    high: float | None
    level: float
    n_boot: int
    n_groups: int
    n_undefined: int


def bootstrap_interval(
    statistic: Statistic,
    groups: NDArray[Any],
    *data: NDArray[Any],
    seed: int,
    n_boot: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Cluster bootstrap: draw as many groups as there are, with replacement, rows together.

    Percentile interval (Efron 1979; Field and Welsh 2007 for clusters).

    Args:
        statistic: called with the resampled arrays; None or NaN where it is undefined.
        groups: patient or duplicate-group ids, (n,), any sortable type.
        data: one or more arrays with n rows.
        seed: of the random draws; the same seed draws the same groups for every statistic.
        n_boot: number of resamples.
        level: coverage in (0, 1).

    Raises:
        MetricsError: no data, lengths that differ, ``n_boot`` below 1 or ``level`` outside (0, 1).
    """
    if not data:
        raise MetricsError("no data arrays to resample; pass those that the statistic takes")
    arrays = [np.asarray(array) for array in data]
    for array in arrays:
        check_same_length(len(array), len(arrays[0]), "one data array", "the first")
    codes, n_groups = check_groups(groups, len(arrays[0]))
    rows_of = _row_finder(codes, n_groups)
    values = [
        _number(statistic(*(array[index] for array in arrays)))
        for draws in _draws(n_groups, n_boot, seed)
        for index in map(rows_of, draws)
    ]
    return _interval(_number(statistic(*arrays)), np.array(values), n_groups, level)


def bootstrap_table(
    statistics: Mapping[str, TableStatistic],
    groups: NDArray[Any],
    cells: NDArray[Any],
    n_cells: int,
    *,
    seed: int,
    n_boot: int = 1000,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Cluster bootstrap of statistics that depend on counts only; no loop over resamples.

    Draws the same groups as ``bootstrap_interval`` with the same seed, so the intervals agree.

    Args:
        statistics: each takes counts (b, n_cells) and returns b values, NaN where undefined.
        groups: patient or duplicate-group ids, (n,).
        cells: the cell that each row counts in, int (n,) in 0..n_cells-1, for example
            ``label * k + predicted``.
        n_cells: number of cells.
        seed: of the random draws.
        n_boot: number of resamples.
        level: coverage in (0, 1).

    Raises:
        MetricsError: a cell out of range, lengths that differ, ``n_boot`` below 1 or ``level``
            outside (0, 1).
    """
    cell = check_labels(cells, n_cells)
    codes, n_groups = check_groups(groups, len(cell))
    flat = np.bincount(codes * n_cells + cell, minlength=n_groups * n_cells)
    per_group = flat.reshape(n_groups, n_cells).astype(np.float64)
    totals = _resampled_sums(per_group, n_boot, seed)
    whole = per_group.sum(axis=0, keepdims=True)
    return {
        name: _interval(float(statistic(whole)[0]), statistic(totals), n_groups, level)
        for name, statistic in statistics.items()
    }


def bootstrap_auroc(
    truth: NDArray[Any],
    score: NDArray[Any],
    groups: NDArray[Any],
    *,
    seed: int,
    n_boot: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Cluster bootstrap of the area under the ROC curve; no loop over resamples.

    Draws the same groups as ``bootstrap_interval`` with the same seed, so the intervals agree.

    Args:
        truth: bool (n,).
        score: finite, float (n,).
        groups: patient or duplicate-group ids, (n,).
        seed: of the random draws.
        n_boot: number of resamples.
        level: coverage in (0, 1).

    Raises:
        MetricsError: the inputs do not fit, ``n_boot`` is below 1 or ``level`` outside (0, 1).
    """
    flags, values = check_binary(truth, score)
    codes, n_groups = check_groups(groups, len(flags))
    order = np.argsort(values, kind="stable")
    firsts = np.unique(values[order], return_index=True)[1]  # of each score
    positive, code = flags[order].astype(np.float64), codes[order]
    areas = [
        _weighted_auroc(times[:, code], positive, firsts)
        for draws in _draws(n_groups, n_boot, seed)
        for times in np.array_split(_times_drawn(draws), -(-len(draws) * len(code) // BLOCK))
    ]
    return _interval(_number(auroc(flags, values)), np.concatenate(areas), n_groups, level)


def _weighted_auroc(weights: Floats, positive: Floats, firsts: Ints) -> Floats:
    """Areas of rows (b, n) sorted by score, weighted; equal scores count half; (b,)."""
    positives = np.add.reduceat(weights * positive, firsts, axis=1)
    negatives = np.add.reduceat(weights * (1 - positive), firsts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return _divide((positives * below).sum(axis=1), pairs)


def metric_intervals(
    labels: NDArray[Any],
    probs: NDArray[Any],
    groups: NDArray[Any],
    positive: Sequence[int],
    threshold: float,
    *,
    seed: int,
    n_boot: int = 1000,
    level: float = 0.95,
    predicted: NDArray[Any] | None = None,
) -> dict[str, Interval]:
    """Intervals of the headline metrics, all on the same resampled groups.

    Args:
        labels: class indices, int (n,).
        probs: probabilities, float (n, k).
        groups: patient or duplicate-group ids, (n,).
        positive: indices of the positive (tumor) classes.
        threshold: of the summed positive probability.
        seed: of the random draws.
        n_boot: number of resamples.
        level: coverage in (0, 1).
        predicted: as for `classification_metrics`.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``macro_f1`` over the classes; ``decision_accuracy``,
        ``sensitivity``, ``specificity``, ``auroc`` of the tumor decision.

    Raises:
        MetricsError: the inputs do not fit.
    """
    classes, array = check_probs(probs, labels)
    truth, score = binary_view(classes, array, positive)
    k = array.shape[1]
    resampling: dict[str, Any] = {"seed": seed, "n_boot": n_boot, "level": level}
    by_class = {
        "accuracy": table_accuracy,
        "balanced_accuracy": table_balanced_accuracy,
        "macro_f1": table_macro_f1,
    }
    by_decision = {
        "decision_accuracy": table_accuracy,
        "sensitivity": table_sensitivity,
        "specificity": table_specificity,
    }
    called = array.argmax(axis=1) if predicted is None else check_labels(predicted, k)
    decided = truth.astype(np.int64) * 2 + (score >= check_threshold(threshold))
    return {
        **bootstrap_table(by_class, groups, classes * k + called, k * k, **resampling),
        **bootstrap_table(by_decision, groups, decided, 4, **resampling),
        "auroc": bootstrap_auroc(truth, score, groups, **resampling),
    }


def table_accuracy(counts: Floats) -> Floats:
    """Accuracy of flattened confusion matrices (b, k * k), rows true; (b,)."""
    matrices = _square(counts)
    return _divide(np.trace(matrices, axis1=1, axis2=2), matrices.sum(axis=(1, 2)))


def table_balanced_accuracy(counts: Floats) -> Floats:
    """Mean recall over the classes present in flattened confusion matrices (b, k * k); (b,)."""
    matrices = _square(counts)
    return _mean_of_defined(_divide(_diagonal(matrices), matrices.sum(axis=2)))


def table_macro_f1(counts: Floats) -> Floats:
    """Mean F1 over the classes present or predicted in flattened matrices (b, k * k); (b,)."""
    matrices = _square(counts)
    either = matrices.sum(axis=1) + matrices.sum(axis=2)
    return _mean_of_defined(_divide(2 * _diagonal(matrices), either))


def table_sensitivity(counts: Floats) -> Floats:
    """Sensitivity of counts tn, fp, fn, tp (b, 4); (b,), NaN without positives."""
    return _divide(counts[:, 3], counts[:, 2] + counts[:, 3])


def table_specificity(counts: Floats) -> Floats:
    """Specificity of counts tn, fp, fn, tp (b, 4); (b,), NaN without negatives."""
    return _divide(counts[:, 0], counts[:, 0] + counts[:, 1])


def _row_finder(codes: Ints, n_groups: int) -> Callable[[Ints], Ints]:
    """A function from a draw of groups to all their rows, as often as each group was drawn."""
    # Rows sorted by group: a drawn group is one slice of `order`, found without a loop.
    order, sizes = np.argsort(codes, kind="stable"), np.bincount(codes, minlength=n_groups)
    starts = np.cumsum(sizes) - sizes

    def rows_of(draw: Ints) -> Ints:
        drawn = sizes[draw]
        ends = np.cumsum(drawn)
        shift = np.repeat(starts[draw] - (ends - drawn), drawn)
        return order[shift + np.arange(ends[-1])]

    return rows_of


def _draws(n_groups: int, n_boot: int, seed: int) -> Iterator[Ints]:
    """Blocks (b, n_groups) of drawn groups, n_boot rows in all."""
    if n_boot < 1:
        raise MetricsError(f"n_boot is {n_boot}; pass 1 or more resamples (1000 is usual)")
    rng = np.random.default_rng(seed)
    per_block = max(1, BLOCK // n_groups)
    for start in range(0, n_boot, per_block):
        yield rng.integers(n_groups, size=(min(per_block, n_boot - start), n_groups))


def _resampled_sums(per_group: Floats, n_boot: int, seed: int) -> Floats:
    """Sums over the groups of each resample, (n_boot, m), from those of each group (g, m)."""
    blocks = _draws(len(per_group), n_boot, seed)
    return np.concatenate([_times_drawn(draws) @ per_group for draws in blocks])


def _times_drawn(draws: Ints) -> Floats:
    """How often each group was drawn, (b, n_groups)."""
    n_rows, n_groups = draws.shape
    flat = (draws + np.arange(n_rows)[:, None] * n_groups).ravel()
    counts = np.bincount(flat, minlength=n_rows * n_groups)
    return counts.reshape(n_rows, n_groups).astype(np.float64)


def _interval(estimate: float, values: Floats, n_groups: int, level: float) -> Interval:
    if not 0 < level < 1:
        raise MetricsError(f"level {level} is not a coverage; pass a number in (0, 1), as 0.95")
    defined = values[np.isfinite(values)]
    low: float | None = None
    high: float | None = None
    if np.isfinite(estimate) and len(defined) and n_groups > 1:
        tail = (1 - level) / 2
        low, high = (float(q) for q in np.quantile(defined, (tail, 1 - tail)))
    return Interval(
        estimate=estimate if np.isfinite(estimate) else None,
        low=low,
        high=high,
        level=level,
        n_boot=len(values),
        n_groups=n_groups,
        n_undefined=len(values) - len(defined),
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _square(counts: Floats) -> Floats:
    k = round(counts.shape[1] ** 0.5)
    return counts.reshape(-1, k, k)


def _diagonal(matrices: Floats) -> Floats:
    return np.diagonal(matrices, axis1=1, axis2=2)


def _divide(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean_of_defined(values: Floats) -> Floats:
    """Row means over finite entries; every resample has at least one class, so never empty."""
    return np.nanmean(values, axis=1)


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
    totals = _resampled_sums(sums, n_boot, seed)
    means = totals[:, :-1] / totals[:, -1:]
    estimates = array.mean(axis=0).tolist()
    return [
        _interval(estimate, column, n_groups, level)
        for estimate, column in zip(estimates, means.T, strict=True)
    ]
