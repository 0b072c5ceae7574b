"""Temperature, threshold and prediction sets from validation scans, and what they achieve there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.metrics.calibration import calibration_metrics, fit_temperature, softmax
from braintumor_ray.metrics.classification import classification_metrics
from braintumor_ray.metrics.conformal import COVERAGE, SetRule, fit_sets
from braintumor_ray.metrics.inputs import binary_view
from braintumor_ray.metrics.thresholds import threshold_by


@dataclass(frozen=True)
class Tuned:
    """A temperature, a threshold, a rule of sets, and the metrics of the scans they come from."""

    temperature: float
    threshold: float
    sets: SetRule
    metrics: dict[str, Any]


def tune_decision(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    positive: Sequence[int],
    by: str,
    *,
    without_choice: float | None = None,
    coverage: float = COVERAGE,
    groups: NDArray[Any] | None = None,
) -> Tuned:
    """Choose temperature, threshold and prediction sets of a bundle.

    Args:
        logits: before softmax, float (n, k).
        labels: class indices, int (n,).
        class_names: k names in the order of the columns.
        positive: indices of the positive (tumor) classes.
        by: as `thresholds.threshold_by` reads it.
        without_choice: the threshold where all scans are positive, or none is; None: refuse.
        coverage: of the prediction sets, as for `fit_sets`.
        groups: scans that are not independent share one; for the prediction sets.

    Raises:
        MetricsError: the inputs do not fit, or all scans are of one kind and that is refused.
    """
    # Where every scan is right, any sharper temperature has a lower NLL: the data choose none.
    all_right = bool((logits.argmax(axis=1) == labels).all())
    temperature = 1.0 if all_right else fit_temperature(logits, labels)
    probs = softmax(logits, temperature)
    truth, score = binary_view(labels, probs, positive)
    if without_choice is not None and (truth.all() or not truth.any()):
        threshold = without_choice
    else:
        threshold = threshold_by(by, truth, score)
    metrics = classification_metrics(labels, probs, class_names, positive, threshold)
    metrics["calibration"] = calibration_metrics(labels, probs, positive)
    sets = fit_sets(labels, probs, coverage, groups)
    return Tuned(temperature, threshold, sets, metrics)
