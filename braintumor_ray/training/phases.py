"""Figures of the test split after each stage and at the tuned threshold, as papers report them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from braintumor_ray.catalog.labels import label_key
from braintumor_ray.metrics.calibration import softmax
from braintumor_ray.metrics.classification import classification_metrics
from braintumor_ray.metrics.conformal import set_rule
from braintumor_ray.metrics.coverage import set_metrics
from braintumor_ray.metrics.inputs import binary_view
from braintumor_ray.metrics.intervals import metric_intervals
from braintumor_ray.metrics.verdicts import LIKELIEST, decision_rule
from braintumor_ray.models.bundle import Bundle, BundleFields
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.recipes.schema import PublishedSection
from braintumor_ray.training.finish import Outputs
from braintumor_ray.training.stages import State
from braintumor_ray.types import Ints

UNTUNED = 0.5
TUNED = "at the tuned threshold"
FIGURES = ("accuracy", "precision", "recall", "f1")
_ANY_TUMOR = ("tumor", "tumour", "yes", "positive")


def phase_table(
    bundle: Bundle,
    stages: dict[str, State],
    run: Callable[[Predictor], Outputs],
    groups_of: Callable[[Ints], Ints],
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Metrics of the test split, a row per phase; all class figures of a row are of its `rule`.

    Args:
        bundle: the finished one, with its tuned threshold.
        stages: weights at the end of each stage but the last, in order; its are the bundle's.
        run: gives the network's outputs of the test split.
        groups_of: duplicate and patient group of scan ids, for the intervals.
        device: as for `Predictor`.

    Returns:
        Rows with `phase`, `rule`, `threshold` (of `binary`), the `FIGURES` and the keys of
        `classification_metrics`; the last one has `intervals` and `prediction_sets`
        (None where the bundle makes none), too. Rows after a stage are of the
        likeliest class. With two classes the figures are those of the tumor class, and a last row
        at the tuned threshold follows where it changes a decision. With more classes precision,
        recall and F1 are macro averages, which no threshold changes.
    """
    last = str(bundle.fields.recipe["stages"][-1]["name"])
    rows = []
    # The bundle's own weights are those at the end of the last stage: they come last.
    for name, state in {**stages, last: bundle.state}.items():
        outputs = run(Predictor(replace(bundle, state=state), device=device))
        rows.append(_row(f"after {name}", outputs, bundle, UNTUNED))
    call = _last_call(outputs, bundle)
    if call.predicted is None:
        rows.pop()
    tuned = _row(TUNED if call.predicted is not None else f"after {last}", outputs, bundle,
                 call.threshold, call.predicted)  # fmt: skip
    groups = groups_of(outputs.scan_ids)
    tuned["intervals"] = _intervals(outputs, bundle, groups, call.predicted)
    tuned["prediction_sets"] = _sets(outputs, bundle, groups)
    return [*rows, tuned]


def phase_lines(
    rows: Sequence[dict[str, Any]], published: Sequence[PublishedSection]
) -> list[list[str]]:
    """The table for people: phase, rule, figures; first ours, then what was published."""
    lines = [["phase", "decided by", *FIGURES]]
    lines += [
        [row["phase"], row["rule"], *(_figure(row[name]) for name in FIGURES)] for row in rows
    ]
    for entry in published:
        label = f"published: {entry.phase}" + (f" ({entry.note})" if entry.note else "")
        lines.append([label, "", *(_figure(getattr(entry, name)) for name in FIGURES)])
    return lines


def comparable(
    published: Iterable[PublishedSection], fields: BundleFields, synthetic: bool
) -> list[PublishedSection]:
    """The published figures of the same classes; those that name no classes count as such.

    Phantoms are never what a publication measured.
    """
    if synthetic:
        return []
    return [e for e in published if not e.classes or _same_classes(e.classes, fields)]


def _same_classes(published: Sequence[str], fields: BundleFields) -> bool:
    """Whether names are the bundle's, but for case, separators and a final 'tumor'."""
    positive = {_bare(name) for name in fields.positive_classes}
    ours = {_bare(name) for name in fields.class_names}
    theirs = {_bare(name) for name in published}
    if theirs & set(_ANY_TUMOR):  # tumor against none, whatever the tumor is called
        return len(ours) == 2 and positive <= {*_ANY_TUMOR}
    return ours == theirs


def _bare(name: str) -> str:
    key = label_key(name)
    return "none" if key in ("no_tumor", "notumor", "no") else key.removesuffix("_tumor")


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns, for a terminal."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@dataclass(frozen=True)
class _Call:
    """How the last row calls its scans: at a threshold, or (None) by the likeliest class."""

    threshold: float
    predicted: Ints | None


def _last_call(outputs: Outputs, bundle: Bundle) -> _Call:
    """The tumor decision at the tuned threshold, where it calls a scan otherwise."""
    threshold = float(np.float32(bundle.fields.threshold))  # as the predictor compares with it
    if len(bundle.fields.class_names) != 2:
        return _Call(threshold, None)
    probs = _probs(outputs, bundle)
    positive = bundle.positive_indices[0]
    _, score = binary_view(outputs.labels, probs, [positive])
    decided = np.where(score >= threshold, positive, 1 - positive)
    changed = bool((decided != probs.argmax(axis=1)).any())
    return _Call(threshold, decided if changed else None)


def _row(
    phase: str, outputs: Outputs, bundle: Bundle, threshold: float, predicted: Ints | None = None
) -> dict[str, Any]:
    metrics = classification_metrics(
        outputs.labels,
        _probs(outputs, bundle),
        bundle.fields.class_names,
        bundle.positive_indices,
        threshold,
        predicted,
    )
    rule = LIKELIEST if predicted is None else decision_rule(threshold)
    figures = _of_tumor(metrics, bundle) if len(metrics["class_names"]) == 2 else _macro(metrics)
    return {"phase": phase, "rule": rule, "threshold": threshold, **metrics, **figures}


def _of_tumor(metrics: dict[str, Any], bundle: Bundle) -> dict[str, float | None]:
    row = metrics["per_class"][bundle.fields.positive_classes[0]]
    return {name: row[name] for name in ("precision", "recall", "f1")}


def _macro(metrics: dict[str, Any]) -> dict[str, float | None]:
    rows = metrics["per_class"].values()
    precisions = [row["precision"] or 0.0 for row in rows if row["recall"] is not None]
    return {
        "precision": float(np.mean(precisions)) if precisions else None,
        "recall": metrics["balanced_accuracy"],
        "f1": metrics["macro_f1"],
    }


def _intervals(
    outputs: Outputs, bundle: Bundle, groups: Ints, predicted: Ints | None
) -> dict[str, Any]:
    """Of the row's rule; `decision_accuracy`, sensitivity and specificity of the threshold."""
    found = metric_intervals(
        outputs.labels,
        _probs(outputs, bundle),
        groups,
        bundle.positive_indices,
        float(np.float32(bundle.fields.threshold)),
        seed=0,
        predicted=predicted,
    )
    if len(bundle.fields.class_names) == 2:
        del found["decision_accuracy"]  # the accuracy of this row
    return {name: asdict(interval) for name, interval in found.items()}


def _sets(outputs: Outputs, bundle: Bundle, groups: Ints) -> dict[str, Any] | None:
    sets, names = bundle.fields.prediction_sets, bundle.fields.class_names
    if sets is None:
        return None
    probs = _probs(outputs, bundle)
    return set_metrics(outputs.labels, probs, set_rule(sets), names, groups, seed=0)


def _probs(outputs: Outputs, bundle: Bundle) -> Any:  # noqa: ANN401 - an array
    return softmax(outputs.logits, bundle.fields.temperature)
