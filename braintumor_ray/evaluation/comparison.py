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
    ours: Evaluated, theirs: Evaluated, other: Predictor, *, seed: int, n_boot: int
) -> dict[str, Any]:
    """Test the difference of two bundles on the same scans.

    Args:
        ours: bundle A's outputs.
        theirs: bundle B's, of the same rows.
        other: bundle B.
        seed: of the resamples.
        n_boot: number of resamples.

    Returns:
        `a` and `b` (accuracy, balanced accuracy, AUROC of each), `difference` (A minus B, with
        paired bootstrap intervals), `mcnemar` of the predicted classes, `n`.
    """
    both = np.intersect1d(ours.measured, theirs.measured)
    a, b = _Side(ours, both), _Side(theirs, both)
    resampling: dict[str, Any] = {"seed": seed, "n_boot": n_boot}
    groups = ours.groups[both]
    # B's order of classes may be another: correctness and recall do not depend on it.
    difference = {
        "accuracy": paired_difference(_mean, groups, [a.right], [b.right], **resampling),
        "balanced_accuracy": paired_difference(
            _mean_recall, groups, [a.labels, a.right], [b.labels, b.right], **resampling
        ),
        "auroc": paired_difference(
            auroc, groups, [a.truth, a.score], [b.truth, b.score], **resampling
        ),
    }
    return {
        "n": len(both),
        "a": a.figures(),
        "b": {**_identity(other), **b.figures()},
        "difference": {name: asdict(value) for name, value in difference.items()},
        "mcnemar": asdict(mcnemar_exact(a.right, b.right)),
    }


class _Side:
    """One bundle's labels, correctness and tumor scores on the common scans."""

    def __init__(self, evaluated: Evaluated, rows: Ints) -> None:
        self.labels = evaluated.truth.indices[rows]
        self.right = evaluated.predicted[rows] == self.labels
        self.truth, self.score = binary_view(
            self.labels, evaluated.all_probs[rows], evaluated.positive
        )

    def figures(self) -> dict[str, float | None]:
        return {
            "accuracy": _mean(self.right),
            "balanced_accuracy": _mean_recall(self.labels, self.right),
            "auroc": auroc(self.truth, self.score),
        }


def _identity(predictor: Predictor) -> dict[str, Any]:
    return {
        "fingerprint": predictor.bundle.fingerprint,
        "backbone": predictor.bundle.fields.architecture.backbone,
    }


def _mean(right: NDArray[Any]) -> float:
    return float(right.mean())


def _mean_recall(labels: NDArray[Any], right: NDArray[Any]) -> float:
    total = np.bincount(labels)
    hits = np.bincount(labels, weights=right)
    return float((hits[total > 0] / total[total > 0]).mean())
