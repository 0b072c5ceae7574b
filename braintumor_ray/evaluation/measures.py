"""The figures of metrics.json for one bundle on one split."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.errors import MetricsError
from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.metrics.calibration import calibration_metrics
from braintumor_ray.metrics.classification import (
    binary_metrics,
    classification_metrics,
    pr_curve_points,
    roc_curve_points,
)
from braintumor_ray.metrics.conformal import set_rule
from braintumor_ray.metrics.coverage import set_metrics
from braintumor_ray.metrics.inputs import binary_view
from braintumor_ray.metrics.intervals import metric_intervals
from braintumor_ray.metrics.thresholds import choose_threshold, threshold_sweep
from braintumor_ray.pages.pictures import spread

SPECIFICITY_FLOOR = 0.9
_SWEEP_POINTS = 200
_RULES = ("f1", "youden", "sensitivity_at_specificity")
_MEASURED = ("sensitivity", "specificity", "precision", "f1", "accuracy")


def measure(evaluated: Evaluated, **resampling: int) -> dict[str, Any]:
    """Metrics with intervals, calibration and curves of the measured scans.

    Args:
        evaluated: with at least one measured scan.
        resampling: `seed` and `n_boot` of the intervals.

    Returns:
        The keys of `classification_metrics` (accuracy, balanced_accuracy, ..., per_class, binary)
        and `intervals`, `calibration`, `curves` (roc, pr), `threshold_sweep`,
        `prediction_sets` (`metrics.coverage.set_metrics`; None where the bundle makes none).
    """
    labels, probs, positive = evaluated.labels, evaluated.probs, evaluated.positive
    threshold = _float32(evaluated.fields.threshold)
    metrics = classification_metrics(
        labels, probs, evaluated.fields.class_names, positive, threshold
    )
    groups = evaluated.groups[evaluated.measured]
    intervals = metric_intervals(labels, probs, groups, positive, threshold, **resampling)  # type: ignore[arg-type]
    truth, score = binary_view(labels, probs, positive)
    return {
        **metrics,
        "intervals": {name: asdict(value) for name, value in intervals.items()},
        "calibration": calibration_metrics(labels, probs, positive),
        "curves": {"roc": roc_curve_points(truth, score), "pr": pr_curve_points(truth, score)},
        "threshold_sweep": _sweep(truth, score),
        "prediction_sets": set_coverage(evaluated, **resampling),
    }


def set_coverage(evaluated: Evaluated, **resampling: int) -> dict[str, Any] | None:
    """What the bundle's prediction sets achieve; arguments as for `measure`."""
    fields, groups = evaluated.fields, evaluated.groups[evaluated.measured]
    if fields.prediction_sets is None:
        return None
    rule = set_rule(fields.prediction_sets)
    found = set_metrics(
        evaluated.labels, evaluated.probs, rule, fields.class_names, groups, **resampling
    )
    return {**found, "warnings": rule.warnings(fields.class_names)}


def operating_points(
    evaluated: Evaluated, split: str, validation: Evaluated | None
) -> list[dict[str, Any]]:
    """The bundle's threshold and others, each chosen by a rule and measured on the split.

    Thresholds are chosen on validation scans where there are any. Without, they are chosen on the
    scans they are measured on and marked `optimistic`; they show only the trade-off.

    Returns:
        Per point `rule`, `floor` (or None), `chosen_on`, `optimistic`, `threshold` and its
        sensitivity, specificity, precision, F1 and accuracy; `note` where a rule has no threshold.
    """
    bundle = {"rule": "bundle", "floor": None, "chosen_on": "the bundle", "optimistic": False}
    points = [bundle | _at(evaluated, evaluated.fields.threshold)]
    chooser = validation if validation is not None and len(validation.measured) else evaluated
    optimistic = chooser is evaluated
    truth, score = binary_view(chooser.labels, chooser.probs, chooser.positive)
    for rule in _RULES:
        point = {
            "rule": rule,
            "floor": SPECIFICITY_FLOOR if rule == "sensitivity_at_specificity" else None,
            "chosen_on": split if optimistic else "val",
            "optimistic": optimistic,
        }
        try:
            chosen = choose_threshold(truth, score, rule, SPECIFICITY_FLOOR)  # type: ignore[arg-type]
            points.append(point | _at(evaluated, chosen.threshold))
        except MetricsError as error:
            points.append(point | {"threshold": None, "note": str(error)})
    return points


def _at(evaluated: Evaluated, threshold: float) -> dict[str, Any]:
    truth, score = binary_view(evaluated.labels, evaluated.probs, evaluated.positive)
    found = binary_metrics(truth, score, _float32(threshold))
    return {"threshold": threshold, **{name: found[name] for name in _MEASURED}}


def _float32(threshold: float) -> float:
    """The threshold as the predictor compares with it."""
    return float(np.float32(threshold))


def _sweep(truth: NDArray[Any], score: NDArray[Any]) -> dict[str, list[float]]:
    names = ("threshold", "sensitivity", "specificity", "precision", "f1")
    if truth.all() or not truth.any():
        return {name: [] for name in names}
    sweep = threshold_sweep(truth, score)
    return {name: spread(sweep[name], _SWEEP_POINTS).tolist() for name in names}
