"""How a bundle is evaluated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.localization.truth import TruthIndex
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.recipes.schema import CamClass, Precision

Section = Mapping[str, Any] | Callable[[Predictor, Evaluated], Mapping[str, Any]]


@dataclass(frozen=True)
class EvaluateOptions:
    """How a bundle is evaluated.

    Attributes:
        split: a value of the split column, or 'all'.
        split_column: the catalog's column of splits.
        classes: mapping of labels to classes; None: the bundle's own.
        device, precision, batch_size: as for `Predictor`.
        tta: average the logits over mirrored and slightly turned views.
        recalibrate: directory of a new bundle with temperature and threshold from validation.
        compare: a second bundle, run over the same scans.
        allow_leakage: measure scans that were trained on, and say so.
        n_boot: resamples for the intervals.
        seed: of resamples and of the choice of samples.
        subgroups: catalog columns for figures per value.
        heatmaps: summarize where the heatmaps' heat is.
        cam_class: whose map, as for `Predictor`.
        truth: where tumors are (`explain.truth.load_truth`): heatmaps are scored against them,
            and galleries show them.
        per_gallery: scans per gallery; 0: no galleries.
        audit: the content of audit.json, or its path, for the report.
        sections: further summaries by name for metrics.json and the report, or functions that
            make one from the predictor and what was evaluated.
        notes: sentences for the top of the report.
        report: write report.html.
        limits: what a file may cost.
    """

    split: str = "test"
    split_column: str = "split"
    classes: str | None = None
    device: str = "auto"
    precision: Precision = "auto"
    batch_size: int | None = None
    tta: bool = False
    recalibrate: Path | None = None
    compare: str | None = None
    allow_leakage: bool = False
    n_boot: int = 1000
    seed: int = 0
    subgroups: tuple[str, ...] = ()
    heatmaps: bool = True
    cam_class: CamClass = "predicted"
    truth: TruthIndex | None = None
    per_gallery: int = 6
    audit: Mapping[str, Any] | Path | None = None
    sections: Mapping[str, Section] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    report: bool = True
    limits: DecodeLimits | None = None
