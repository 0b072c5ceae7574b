"""Two bundles on the same scans."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.errors import UsageError
from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.metrics.classification import auroc
from braintumor_ray.metrics.comparison import mcnemar_exact, paired_difference
from braintumor_ray.metrics.inputs import binary_view
from braintumor_ray.metrics.intervals import Statistic
from braintumor_ray.models.bundle import BundleFields
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.types import Ints


def check_comparable(ours: BundleFields, other: BundleFields) -> None:
    """Refuse bundles that do not answer the same question.

    Raises:
        UsageError: their classes or positive classes differ.
    """
    for name in ("class_names", "positive_classes"):
        a, b = getattr(ours, name), getattr(other, name)
        if set(a) != set(b):
            raise UsageError(
                f"the bundles differ in {name} ({', '.join(a)} against {', '.join(b)}); "
                "only bundles of the same classes can be compared"
            )


def compare(
    ours: Evaluated, theirs: Evaluated, other: Predictor, **resampling: int
) -> dict[str, Any]:
    """Test the difference of two bundles on the same scans.

    Args:
        ours: bundle A's outputs.
        theirs: bundle B's, of the same rows.
        other: bundle B.
        resampling: `seed` and `n_boot` of the intervals.

    Returns:
        `a` and `b` (accuracy, balanced accuracy, AUROC of each), `difference` (A minus B, with
        paired bootstrap intervals), `mcnemar` of the predicted classes, `n`.
    """
    both = np.intersect1d(ours.measured, theirs.measured)
    groups, bundle = ours.groups[both], other.bundle
    a, b = _arguments(ours, both), _arguments(theirs, both)
    difference = {
        name: paired_difference(figure, groups, a[name], b[name], **resampling)  # type: ignore[arg-type]
        for name, figure in _FIGURES.items()
    }
    (right_a,), (right_b,) = a["accuracy"], b["accuracy"]
    return {
        "n": len(both),
        "a": _figures(a),
        "b": {
            "fingerprint": bundle.fingerprint,
            "backbone": bundle.fields.architecture.backbone,
            **_figures(b),
        },
        "difference": {name: asdict(value) for name, value in difference.items()},
        "mcnemar": asdict(mcnemar_exact(right_a, right_b)),
    }


def _arguments(evaluated: Evaluated, rows: Ints) -> dict[str, list[NDArray[Any]]]:
    """What each figure is computed from, on the common scans."""
    labels = evaluated.truth.indices[rows]
    right = evaluated.predicted[rows] == labels
    truth, score = binary_view(labels, evaluated.all_probs[rows], evaluated.positive)
    # The bundles may order their classes differently: none of these depends on the order.
    return {"accuracy": [right], "balanced_accuracy": [labels, right], "auroc": [truth, score]}


def _figures(arguments: dict[str, list[NDArray[Any]]]) -> dict[str, float | None]:
    return {name: figure(*arguments[name]) for name, figure in _FIGURES.items()}


def _mean(right: NDArray[Any]) -> float:
    return float(right.mean())


def _mean_recall(labels: NDArray[Any], right: NDArray[Any]) -> float:
    total = np.bincount(labels)
    hits = np.bincount(labels, weights=right)
    return float((hits[total > 0] / total[total > 0]).mean())


_FIGURES: dict[str, Statistic] = {
    "accuracy": _mean,
    "balanced_accuracy": _mean_recall,
    "auroc": auroc,
}
