"""Checks of labels, probabilities, scores and groups before anything is computed from them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.errors import MetricsError
from braintumor_ray.types import Bools, Floats, Ints

ROW_SUM_TOLERANCE = 1e-3


def check_labels(labels: NDArray[Any], n_classes: int) -> Ints:
    """Return class indices as int64 (n,).

    Raises:
        MetricsError: empty, not one-dimensional, not integers, or outside 0..n_classes-1.
    """
    array = _one_dimensional(labels, "labels")
    if array.dtype.kind not in "iu":
        raise MetricsError(
            f"labels have dtype {array.dtype}, not integers; pass class indices, not names"
        )
    outside = np.flatnonzero((array < 0) | (array >= n_classes))
    if outside.size:
        row = int(outside[0])
        raise MetricsError(
            f"label {array[row]} in row {row} is outside 0..{n_classes - 1}; "
            "map the labels to the bundle's classes or leave that scan out"
        )
    return array.astype(np.int64)


def check_probs(probs: NDArray[Any], labels: NDArray[Any]) -> tuple[Ints, Floats]:
    """Return labels as int64 (n,) and probabilities in [0, 1] as float64 (n, k), k >= 2.

    Raises:
        MetricsError: a probability is NaN, infinite or negative, a row does not sum to 1 within
            1e-3, the lengths differ, or ``labels`` do not fit (see ``check_labels``).
    """
    truth, array = _labeled_rows(probs, labels, "probs")
    negative = np.argwhere(array < 0)
    if negative.size:
        row, column = (int(i) for i in negative[0])
        raise MetricsError(
            f"probs holds {array[row, column]:g} in row {row}, column {column}; "
            "probabilities lie in [0, 1]: pass softmax outputs, not logits"
        )
    sums = array.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > ROW_SUM_TOLERANCE)
    if wrong.size:
        row = int(wrong[0])
        raise MetricsError(
            f"probs row {row} sums to {sums[row]:g}, not 1; pass softmax outputs over all classes"
        )
    return truth, array


def check_logits(logits: NDArray[Any], labels: NDArray[Any]) -> tuple[Ints, Floats]:
    """Return labels as int64 (n,) and finite logits as float64 (n, k), k >= 2.

    Raises:
        MetricsError: a logit is NaN or infinite, the lengths differ, or ``labels`` do not fit.
    """
    return _labeled_rows(logits, labels, "logits")


def check_binary(truth: NDArray[Any], score: NDArray[Any]) -> tuple[Bools, Floats]:
    """Return truth as bool (n,) and finite scores as float64 (n,).

    Raises:
        MetricsError: empty, lengths differ, a score is NaN or infinite, truth is not 0/1.
    """
    flags = check_flags(truth, "truth")
    array = _one_dimensional(score, "score").astype(np.float64)
    check_same_length(len(flags), len(array), "truth", "score")
    _finite(array[:, None], "score")
    return flags, array


def check_flags(flags: NDArray[Any], name: str) -> Bools:
    """Return a bool (n,) array from bools or from numbers that are all 0 or 1.

    Raises:
        MetricsError: empty, not one-dimensional, or a value other than 0 and 1.
    """
    array = _one_dimensional(flags, name)
    other = np.flatnonzero(~np.isin(array, (0, 1)))
    if other.size:
        raise MetricsError(
            f"{name} holds {array[other[0]]} in row {other[0]}; it must be true/false or 0/1"
        )
    return array.astype(np.bool_)


def check_positive(positive: Sequence[int], n_classes: int) -> list[int]:
    """Return the indices of the positive classes as a sorted list; none or all are allowed.

    Raises:
        MetricsError: an index is outside 0..n_classes-1 or named twice.
    """
    indices = sorted(int(i) for i in positive)
    if len(set(indices)) != len(indices) or any(not 0 <= i < n_classes for i in indices):
        raise MetricsError(
            f"positive classes {tuple(positive)} are not distinct indices in 0..{n_classes - 1}; "
            "take them from the bundle"
        )
    return indices


def binary_view(
    labels: NDArray[Any], probs: NDArray[Any], positive: Sequence[int]
) -> tuple[Bools, Floats]:
    """Return the tumor question of a multi-class prediction.

    Args:
        labels: class indices, int (n,).
        probs: probabilities, float (n, k).
        positive: indices of the positive (tumor) classes.

    Returns:
        truth, bool (n,): the label is a positive class; score, float64 (n,): the sum of the
        positive classes' probabilities.

    Raises:
        MetricsError: see ``check_probs`` and ``check_positive``.
    """
    classes, array = check_probs(probs, labels)
    columns = check_positive(positive, array.shape[1])
    return np.isin(classes, columns), array[:, columns].sum(axis=1)


def check_threshold(threshold: float) -> float:
    """Return the threshold as a float.

    Raises:
        MetricsError: it is NaN or infinite.
    """
    if not np.isfinite(threshold):
        raise MetricsError(f"threshold {threshold} is not a number; choose one on validation data")
    return float(threshold)


def check_groups(groups: NDArray[Any], n_rows: int) -> tuple[Ints, int]:
    """Return each row's group as 0..n_groups-1, int64 (n,), and the number of groups.

    Raises:
        MetricsError: empty, not one-dimensional, not one group per row, or a group is missing
            (None or NaN): rows without a group are not one patient.
    """
    array = _one_dimensional(groups, "groups")
    check_same_length(len(array), n_rows, "groups", "data")
    missing = np.flatnonzero([_is_missing(value) for value in array.tolist()])
    if missing.size:
        raise MetricsError(
            f"groups holds {array[missing[0]]} in row {missing[0]} ({len(missing)} such rows); "
            "give each scan without a patient its duplicate group or an id of its own"
        )
    names, codes = np.unique(array, return_inverse=True)
    return codes.astype(np.int64).ravel(), len(names)


def _labeled_rows(rows: NDArray[Any], labels: NDArray[Any], name: str) -> tuple[Ints, Floats]:
    array = np.asarray(rows)
    if array.ndim != 2 or array.shape[1] < 2:
        raise MetricsError(
            f"{name} has shape {array.shape}; it must be (n, k): one row per scan, "
            "one column per class, two classes or more"
        )
    if not len(array):
        raise MetricsError(f"{name} is empty; there is nothing to measure: check the split")
    classes = check_labels(labels, array.shape[1])
    check_same_length(len(classes), len(array), "labels", name)
    array = array.astype(np.float64)
    _finite(array, name)
    return classes, array


def _one_dimensional(values: NDArray[Any], name: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise MetricsError(f"{name} has shape {array.shape}; it must be (n,): one value per scan")
    if not len(array):
        raise MetricsError(f"{name} is empty; there is nothing to measure: check the split")
    return array


def check_same_length(first: int, second: int, first_name: str, second_name: str) -> None:
    """Refuse two arrays of which one has rows that the other lacks.

    Raises:
        MetricsError: the lengths differ.
    """
    if first != second:
        raise MetricsError(
            f"{first_name} has {first} rows and {second_name} has {second}; "
            "both must come from the same scans, in the same order"
        )


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _finite(array: Floats, name: str) -> None:
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        row, column = (int(i) for i in bad[0])
        raise MetricsError(
            f"{name} holds {array[row, column]} in row {row}, column {column} "
            f"({len(bad)} such values); look at that scan or the model's weights"
        )
