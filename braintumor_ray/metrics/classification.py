"""Metrics of class probabilities, and of the tumor decision at one threshold, ready for JSON."""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    matthews_corrcoef,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.inputs import (
    binary_view,
    check_binary,
    check_labels,
    check_probs,
    check_same_length,
    check_threshold,
)
from braintumor_ray.types import Bools, Floats, Ints


def classification_metrics(
    labels: NDArray[Any],
    probs: NDArray[Any],
    class_names: Sequence[str],
    positive: Sequence[int],
    threshold: float,
    predicted: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Measure predictions against labels; plain floats, ints, lists and None throughout.

    The predicted class is the likeliest one, or as given; the decision is positive where the
    positive classes' probabilities add up to ``threshold`` or more.

    None, never NaN, marks a value that the data do not define:
    recall of a class without scans; precision of a class never predicted; specificity of a class
    that every scan has; F1 of a class neither present nor predicted; AUROC and average precision
    of a class that no scan or every scan has; Matthews' coefficient where all labels, or all
    predictions, are one class. ``balanced_accuracy`` (mean recall), ``macro_f1`` and
    ``macro_auroc`` (one against the rest) are means over the classes where the value is defined.

    Args:
        labels: class indices in 0..k-1, int (n,).
        probs: probabilities in [0, 1], rows summing to 1 within 1e-3, float (n, k).
        class_names: k names in the order of the columns.
        positive: indices of the positive (tumor) classes.
        threshold: of the summed positive probability.
        predicted: class index that each scan is called by another rule, int (n,).

    Returns:
        n, accuracy, balanced_accuracy, macro_f1, macro_auroc, mcc, confusion_matrix (rows true,
        columns predicted, in class order), class_names, per_class (by name) and binary.

    Raises:
        MetricsError: NaN or infinite probabilities, rows that do not sum to 1, a label out of
            range, lengths that differ, nothing to measure, or names that do not fit the columns.
    """
    classes, array = check_probs(probs, labels)
    names = _check_names(class_names, array.shape[1])
    truth, score = binary_view(classes, array, positive)
    called = _called(array, predicted)
    per_class = _per_class(classes, called, array)
    return {
        "n": len(classes),
        "accuracy": float(np.mean(classes == called)),
        "balanced_accuracy": _mean_defined([row["recall"] for row in per_class]),
        "macro_f1": _mean_defined([row["f1"] for row in per_class]),
        "macro_auroc": _mean_defined([row["auroc"] for row in per_class]),
        "mcc": _mcc(classes, called),
        "class_names": names,
        "confusion_matrix": _confusion(classes, called, array.shape[1]).tolist(),
        "per_class": dict(zip(names, per_class, strict=True)),
        "binary": binary_metrics(truth, score, threshold),
    }


def binary_metrics(
    truth: NDArray[Any], score: NDArray[Any], threshold: float
) -> dict[str, float | int | None]:
    """Measure the decision ``score >= threshold`` against the truth.

    A ratio whose denominator is zero is None: sensitivity without positives, specificity without
    negatives, precision where nothing is called positive, NPV where nothing is called negative;
    balanced accuracy, AUROC and average precision where the truth is of one kind.

    Args:
        truth: bool or 0/1, (n,).
        score: finite, float (n,).
        threshold: finite, in the units of ``score``.

    Raises:
        MetricsError: the inputs do not fit or the threshold is not finite.
    """
    flags, values = check_binary(truth, score)
    cut = check_threshold(threshold)
    tn, fp, fn, tp = _confusion(flags, values >= cut, 2).ravel().tolist()
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    both = None not in (sensitivity, specificity)
    return {
        "threshold": cut,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "accuracy": _ratio(tp + tn, len(flags)),
        "balanced_accuracy": _mean_defined([sensitivity, specificity]) if both else None,
        "auroc": auroc(flags, values),
        "average_precision": average_precision(flags, values),
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
    }


def auroc(truth: NDArray[Any], score: NDArray[Any]) -> float | None:
    """Area under the ROC curve in [0, 1]; None where the truth (bool, (n,)) is of one kind."""
    if _one_kind(truth):
        return None
    return float(roc_auc_score(truth, score))


def average_precision(truth: NDArray[Any], score: NDArray[Any]) -> float | None:
    """Average precision in [0, 1], a step sum; None where the truth (bool, (n,)) is of one kind."""
    if _one_kind(truth):
        return None
    return float(average_precision_score(truth, score))


def roc_curve_points(
    truth: NDArray[Any], score: NDArray[Any], max_points: int = 200
) -> dict[str, list[float | None]]:
    """ROC curve from (0, 0) to (1, 1), thinned to the points that carry its shape.

    Args:
        truth: bool or 0/1, (n,).
        score: finite, float (n,).
        max_points: at most this many points, 2 or more.

    Returns:
        Equally long lists ``fpr``, ``tpr`` and ``threshold`` (positive where the score is at
        least that; None at (0, 0), where nothing is called positive). The lists are empty where
        the truth is of one kind, as the curve is then undefined.

    Raises:
        MetricsError: the inputs do not fit.
    """
    flags, values = check_binary(truth, score)
    if _one_kind(flags):
        return {"fpr": [], "tpr": [], "threshold": []}
    fpr, tpr, threshold = roc_curve(flags, values, drop_intermediate=True)
    return _thinned({"fpr": fpr, "tpr": tpr, "threshold": threshold}, max_points)


def pr_curve_points(
    truth: NDArray[Any], score: NDArray[Any], max_points: int = 200
) -> dict[str, list[float | None]]:
    """Precision-recall curve from recall 1 to recall 0, thinned like the ROC curve.

    Args:
        truth: bool or 0/1, (n,).
        score: finite, float (n,).
        max_points: at most this many points, 2 or more.

    Returns:
        Equally long lists ``recall``, ``precision`` and ``threshold`` (None at recall 0, precision
        1, where by convention nothing is called positive); empty where the truth is of one kind.

    Raises:
        MetricsError: the inputs do not fit.
    """
    flags, values = check_binary(truth, score)
    if _one_kind(flags):
        return {"recall": [], "precision": [], "threshold": []}
    precision, recall, threshold = precision_recall_curve(flags, values, drop_intermediate=True)
    threshold = np.append(threshold, np.inf)
    return _thinned({"recall": recall, "precision": precision, "threshold": threshold}, max_points)


def _called(probs: Floats, predicted: NDArray[Any] | None) -> Ints:
    """The class that each scan is called, int64 (n,)."""
    if predicted is None:
        return np.asarray(probs.argmax(axis=1), np.int64)
    check_same_length(len(predicted), len(probs), "predicted", "probs")
    return check_labels(predicted, probs.shape[1])


def _per_class(
    labels: Ints, predicted: NDArray[Any], probs: Floats
) -> list[dict[str, float | int | None]]:
    columns = range(probs.shape[1])
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=list(columns), zero_division=np.nan
    )
    return [
        {
            "precision": _plain(precision[c]),
            "recall": _plain(recall[c]),
            "f1": _plain(f1[c]),
            "support": int(support[c]),
            "specificity": _ratio(*_negatives(labels == c, predicted == c)),
            "auroc": auroc(labels == c, probs[:, c]),
            "average_precision": average_precision(labels == c, probs[:, c]),
        }
        for c in columns
    ]


def _negatives(truth: Bools, decision: Bools) -> tuple[int, int]:
    return int((~truth & ~decision).sum()), int((~truth).sum())


def _confusion(truth: NDArray[Any], predicted: NDArray[Any], n_classes: int) -> Ints:
    matrix: Ints = confusion_matrix(
        truth.astype(np.int64), predicted.astype(np.int64), labels=list(range(n_classes))
    )
    return matrix


def _mcc(labels: Ints, predicted: NDArray[Any]) -> float | None:
    # scikit-learn answers 0 for 0/0, which reads as "no better than chance".
    if _one_kind(labels) or _one_kind(predicted):
        return None
    return float(matthews_corrcoef(labels, predicted))


def _check_names(class_names: Sequence[str], n_classes: int) -> list[str]:
    names = [str(name) for name in class_names]
    if len(names) != n_classes or len(set(names)) != n_classes:
        raise MetricsError(
            f"class names {names} do not name {n_classes} columns of probs one by one; "
            "take names and probabilities from the same bundle"
        )
    return names


def _thinned(curve: dict[str, Floats], max_points: int) -> dict[str, list[float | None]]:
    x, y, _ = curve.values()
    keep = thin_polyline(x, y, max_points)
    return {name: [_plain(v) for v in values[keep]] for name, values in curve.items()}


def _one_kind(values: NDArray[Any]) -> bool:
    return bool((values == values[0]).all())


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean_defined(values: Sequence[float | int | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def thin_polyline(x: Floats, y: Floats, max_points: int) -> Ints:
    """Choose points of a polyline, its ends and then its sharpest corners first.

    Repeatedly adds the point farthest from the line drawn so far (Ramer 1972; Douglas and
    Peucker 1973, with a budget of points in place of a tolerance).

    Args:
        x: abscissae, float (m,), m >= 1.
        y: ordinates, float (m,).
        max_points: at most this many, 2 or more.

    Returns:
        Ascending indices of the points kept, int64 (<= max_points,); points on the line between
        their neighbors may be left out below that number.

    Raises:
        MetricsError: ``max_points`` is below 2.
    """
    if max_points < 2:
        raise MetricsError(f"max_points is {max_points}; a curve has two ends: pass 2 or more")
    if len(x) <= max_points:
        return np.arange(len(x))
    last = len(x) - 1
    keep = [0, last]
    segments = [_farthest(x, y, 0, last)]
    while segments and len(keep) < max_points:
        distance, at, low, high = heapq.heappop(segments)
        if distance == 0:
            break
        keep.append(at)
        for ends in ((low, at), (at, high)):
            if ends[1] - ends[0] > 1:
                heapq.heappush(segments, _farthest(x, y, *ends))
    return np.array(sorted(keep), dtype=np.int64)


def _farthest(x: Floats, y: Floats, low: int, high: int) -> tuple[float, int, int, int]:
    """(minus the distance, index, low, high) of the inner point farthest from the chord."""
    dx, dy = x[low + 1 : high] - x[low], y[low + 1 : high] - y[low]
    chord_x, chord_y = x[high] - x[low], y[high] - y[low]
    length = np.hypot(chord_x, chord_y)
    away = np.abs(dx * chord_y - dy * chord_x) / length if length else np.hypot(dx, dy)
    at = int(away.argmax())
    return -float(away[at]), low + 1 + at, low, high
