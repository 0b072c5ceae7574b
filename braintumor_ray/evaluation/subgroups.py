"""Figures per value of a catalog column: does the bundle fail some scans more than others?"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from braintumor_ray.errors import UsageError
from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.metrics.classification import classification_metrics
from braintumor_ray.metrics.intervals import bootstrap_table, table_accuracy

MOST_VALUES = 12
MOST_NUMBERS = 6
FEW_GROUPS = 10
UNKNOWN, OTHER = "unknown", "other"
_BINARY = ("sensitivity", "specificity", "auroc")


def subgroup_table(
    evaluated: Evaluated, columns: Sequence[str], **resampling: int
) -> dict[str, list[dict[str, Any]]]:
    """Measure each value of each column.

    A column of more than 6 numbers is cut at its quartiles; of other columns with more than 12
    values the commonest are kept and the rest is 'other'.

    Args:
        evaluated: with at least one measured scan.
        columns: names of catalog columns.
        resampling: `seed` and `n_boot` of the intervals.

    Returns:
        Per column its values, each with `value`, `n`, `groups`, `accuracy` with its interval's
        `low` and `high`, `balanced_accuracy`, `sensitivity`, `specificity`, `auroc`, and `few`
        (fewer than 10 independent groups: not a figure to rely on).

    Raises:
        UsageError: the catalog has no such column.
    """
    tables = {}
    for column in columns:
        if column not in evaluated.rows.column_names:
            raise UsageError(
                f"--subgroup {column}: the catalog has no such column; it has "
                f"{', '.join(evaluated.rows.column_names)}"
            )
        values = _values(evaluated.rows[column].take(pa.array(evaluated.measured)))
        tables[column] = [
            {"value": value, **_measure(evaluated, values == value, resampling)}
            for value in _in_order(values)
        ]
    return tables


def _measure(
    evaluated: Evaluated, inside: NDArray[np.bool_], resampling: dict[str, int]
) -> dict[str, Any]:
    labels, probs = evaluated.labels[inside], evaluated.probs[inside]
    groups = evaluated.groups[evaluated.measured][inside]
    names, positive = evaluated.fields.class_names, evaluated.positive
    threshold = float(np.float32(evaluated.fields.threshold))
    whole = classification_metrics(labels, probs, names, positive, threshold)
    k = len(names)
    cells = labels * k + probs.argmax(axis=1)
    statistics = {"accuracy": table_accuracy}
    accuracy = bootstrap_table(statistics, groups, cells, k * k, **resampling)["accuracy"]  # type: ignore[arg-type]
    count = len(np.unique(groups))
    return {
        "n": len(labels),
        "groups": count,
        "few": count < FEW_GROUPS,
        "accuracy": accuracy.estimate,
        "low": accuracy.low,
        "high": accuracy.high,
        "balanced_accuracy": whole["balanced_accuracy"],
        **{name: whole["binary"][name] for name in _BINARY},
    }


def _values(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """Each row's value as text, few enough of them."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    raw = column.to_pylist()
    distinct = {value for value in raw if value is not None}
    if len(distinct) > MOST_NUMBERS and _are_numbers(column.type, distinct):
        return _quartiles(np.array(raw, dtype=np.float64))
    texts = [UNKNOWN if value is None else str(value) for value in raw]
    known = Counter(text for text, value in zip(texts, raw, strict=True) if value is not None)
    common = {UNKNOWN, *(name for name, _ in known.most_common(MOST_VALUES))}
    kept = [text if len(distinct) <= MOST_VALUES or text in common else OTHER for text in texts]
    return np.array(kept, dtype=object)


# Not of a code such as 007, nor what only Python takes for a number (1_000, inf).
_NUMBER = re.compile(r"[+-]?(?!0[0-9])([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def _are_numbers(kind: pa.DataType, values: Iterable[Any]) -> bool:
    """Also as text: a CSV has no other way to keep them."""
    if pa.types.is_string(kind):
        return all(_NUMBER.fullmatch(value) for value in values)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _quartiles(values: NDArray[np.float64]) -> NDArray[np.object_]:
    """The range between quartiles of each value, as text; NaN is unknown."""
    known = ~np.isnan(values)
    edges = np.unique(np.quantile(values[known], (0, 0.25, 0.5, 0.75, 1), method="nearest"))
    if len(edges) < 2:
        edges = np.append(edges, edges)
    # All digits: bounds that differ in the seventh (bytes, dates as 20260131) would be one name.
    names = np.array([f"{low:.15g} to {high:.15g}" for low, high in pairwise(edges)], dtype=object)
    bins = np.searchsorted(edges, values, side="left") - 1
    return np.where(known, names[bins.clip(0, len(names) - 1)], UNKNOWN)


def _in_order(values: NDArray[np.object_]) -> list[str]:
    """Distinct values: numbers and ranges by size, others by name, the leftovers last."""

    def key(value: str) -> tuple[int, float, str]:
        if value in (UNKNOWN, OTHER):
            return 2, 0.0, value
        try:
            return 0, float(value.partition(" to ")[0]), value
        except ValueError:
            return 1, 0.0, value

    return sorted(set(values.tolist()), key=key)
