"""One bundle's outputs for the scans of one split, with their true classes."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.errors import UsageError
from braintumor_ray.evaluation.inference import ScanOutputs, predict_catalog, probabilities
from braintumor_ray.evaluation.selection import Truth, clusters, true_classes
from braintumor_ray.metrics.conformal import named_sets
from braintumor_ray.models.bundle import BundleFields
from braintumor_ray.predict.predictor import Predictor, normalized_entropy
from braintumor_ray.types import Ints, Progress


@dataclass(frozen=True)
class Evaluated:
    """Scans of a split, one bundle's outputs for them, and their true classes.

    Attributes:
        fields: of the bundle.
        rows: catalog rows, n of them.
        truth: their true classes.
        outputs: what the bundle computed for them.
        groups: int64 (n,), scans that are not independent of each other share a number.
        grouped_by: how the groups are known, in words.
        limits: what a file might cost, for what reads the scans again; None: as by default.
    """

    fields: BundleFields
    rows: pa.Table
    truth: Truth
    outputs: ScanOutputs
    groups: Ints
    grouped_by: str
    limits: DecodeLimits | None = None

    @cached_property
    def measured(self) -> Ints:
        """Rows that are measured: readable, and of a class that the bundle knows."""
        return np.flatnonzero(self.outputs.ok & (self.truth.indices >= 0))

    @cached_property
    def labels(self) -> Ints:
        """True class index of the measured rows, int64 (m,)."""
        return self.truth.indices[self.measured]

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """Logits of the measured rows, (m, k)."""
        return self.outputs.logits[self.measured]

    @cached_property
    def all_probs(self) -> NDArray[np.float32]:
        """Probabilities of all rows, (n, k); NaN where a scan could not be read."""
        return probabilities(self.outputs.logits, self.fields.temperature)

    @cached_property
    def probs(self) -> NDArray[np.float32]:
        """Probabilities of the measured rows, (m, k)."""
        return self.all_probs[self.measured]

    @cached_property
    def positive(self) -> list[int]:
        """Indices of the positive classes."""
        names = self.fields.class_names
        return [i for i, name in enumerate(names) if name in self.fields.positive_classes]

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Summed probability of the positive classes of all rows, (n,)."""
        return np.asarray(self.all_probs[:, self.positive].sum(axis=1), np.float32)

    @cached_property
    def decisions(self) -> NDArray[np.bool_]:
        """Whether the score reaches the bundle's threshold, bool (n,); False where not read."""
        return np.asarray(self.scores >= np.float32(self.fields.threshold))

    @cached_property
    def predicted(self) -> Ints:
        """Index of the likeliest class of all rows, int64 (n,); -1 where not read."""
        probs = np.nan_to_num(self.all_probs, nan=-1.0)
        return np.where(self.outputs.ok, probs.argmax(axis=1), -1)

    def require_some(self, split: str) -> None:
        """Refuse to measure nothing.

        Raises:
            UsageError: no scan is readable and labeled.
        """
        if not len(self.measured):
            raise UsageError(
                f"split '{split}': none of {self.rows.num_rows} scans can be measured "
                f"({self._why_none()}); map the labels to {', '.join(self.fields.class_names)} by "
                "--classes CLASS=LABEL+LABEL,..."
            )

    def _why_none(self) -> str:
        """What became of the scans, and the labels that were found, in words."""
        counts = self.counts()
        kinds = {"quarantined": "unreadable", "skipped": "skipped", "unlabelled": "without a label"}
        kinds["left_out"] = "of labels that no class has"
        kept = [f"{counts[key]} {words}" for key, words in kinds.items() if counts[key]]
        labels = sorted({label for label in self.rows["label"].to_pylist() if label is not None})
        return "; ".join([", ".join(kept), f"labels found: {', '.join(labels[:12]) or 'none'}"])

    def counts(self) -> dict[str, Any]:
        """How many scans there were and what became of those that were not measured."""
        status = Counter(self.outputs.status)
        reasons = Counter(reason for reason in self.outputs.reason if reason is not None)
        return {
            "rows": self.rows.num_rows,
            "measured": len(self.measured),
            "quarantined": status["quarantined"],
            "skipped": status["skipped"],
            "unlabelled": self.truth.unlabeled,
            "left_out": self.truth.left_out,
            "reasons": dict(reasons.most_common()),
        }

    def table(self) -> pa.Table:
        """All rows with what was predicted; null where a scan could not be read."""
        ok = self.outputs.ok
        names, sets = self.fields.class_names, self.fields.prediction_sets
        scan = {name: self.rows[name] for name in ("scan_id", "path", "frame", "label")}
        further = {}
        if sets is not None:
            named = named_sets(self.all_probs, sets.thresholds, names)
            further["prediction_set"] = pa.array(named, pa.list_(pa.string()), mask=~ok)
        return pa.table(
            {
                **scan,
                "true_class": pa.array(self.truth.names, pa.string()),
                "status": pa.array(self.outputs.status, pa.string()),
                "reason": pa.array(self.outputs.reason, pa.string()),
                "pixel_sha256": pa.array(self.outputs.pixel_sha256, pa.string()),
                "group": pa.array(self.groups, pa.int64()),
                "predicted_class": pa.array(
                    [names[i] if i >= 0 else None for i in self.predicted], pa.string()
                ),
                "probabilities": pa.array(
                    [p if o else None for p, o in zip(self.all_probs.tolist(), ok, strict=True)],
                    pa.list_(pa.float32()),
                ),
                "tumour_probability": pa.array(self.scores, mask=~ok),
                "decision": pa.array(self.decisions, mask=~ok),
                "entropy": pa.array(normalized_entropy(self.all_probs), mask=~ok),
                **further,
            }
        )


def evaluate_rows(
    predictor: Predictor,
    rows: pa.Table,
    *,
    classes: str | None = None,
    explain: bool = False,
    limits: DecodeLimits | None = None,
    progress: Progress | None = None,
) -> Evaluated:
    """Predict catalog rows and look up their true classes.

    Raises:
        UsageError: a class that the bundle does not know.
    """
    fields = predictor.bundle.fields
    truth = true_classes(rows, fields, classes)
    outputs = predict_catalog(predictor, rows, explain=explain, limits=limits, progress=progress)
    groups, grouped_by = clusters(rows, outputs.image_groups)
    return Evaluated(fields, rows, truth, outputs, groups, grouped_by, limits)
