"""Figures of the test split after each stage and at the tuned threshold, as papers report them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from braintumor_ray.metrics.calibration import softmax
from braintumor_ray.metrics.classification import classification_metrics
from braintumor_ray.metrics.conformal import set_metrics, set_rule
from braintumor_ray.metrics.intervals import metric_intervals
from braintumor_ray.models.bundle import Bundle
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.recipes.schema import PublishedSection
from braintumor_ray.training.finish import Outputs
from braintumor_ray.training.stages import State
from braintumor_ray.types import Ints

UNTUNED = 0.5
TUNED = "at the tuned threshold"
FIGURES = ("accuracy", "precision", "recall", "f1")


def phase_table(
    bundle: Bundle,
    stages: dict[str, State],
    run: Callable[[Predictor], Outputs],
    groups_of: Callable[[Ints], Ints],
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Metrics of the test split, a row per phase.

    Args:
        bundle: the finished one, with its tuned threshold.
        stages: weights at the end of each stage but the last, in order; its are the bundle's.
        run: gives the network's outputs of the test split.
        groups_of: duplicate and patient group of scan ids, for the intervals.
        device: as for `Predictor`.

    Returns:
        Rows with `phase`, `threshold`, the `FIGURES` and the keys of `classification_metrics`; the
        last one has `intervals` and `prediction_sets` (None where the bundle makes none), too. With
        two classes the figures are of the tumor decision at the threshold; with more, accuracy is
        of the likeliest class and the others are macro averages, so that the threshold changes
        `binary` alone.
    """
    last = str(bundle.fields.recipe["stages"][-1]["name"])
    rows = []
    # The bundle's own weights are those at the end of the last stage: they come last.
    for name, state in {**stages, last: bundle.state}.items():
        outputs = run(Predictor(replace(bundle, state=state), device=device))
        rows.append(_row(f"after {name}", outputs, bundle, UNTUNED))
    tuned = _row(TUNED, outputs, bundle, bundle.fields.threshold)
    groups = groups_of(outputs.scan_ids)
    tuned["intervals"] = _intervals(outputs, bundle, groups)
    tuned["prediction_sets"] = _sets(outputs, bundle, groups)
    return [*rows, tuned]


def phase_lines(
    rows: Sequence[dict[str, Any]], published: Sequence[PublishedSection]
) -> list[list[str]]:
    """The table for people: phase, threshold, figures; first ours, then what was published."""
    lines = [["phase", "threshold", *FIGURES]]
    lines += [
        [row["phase"], f"{row['threshold']:.3f}", *(_figure(row[name]) for name in FIGURES)]
        for row in rows
    ]
    for entry in published:
        label = f"published: {entry.phase}" + (f" ({entry.note})" if entry.note else "")
        lines.append([label, "", *(_figure(getattr(entry, name)) for name in FIGURES)])
    return lines


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns, for a terminal."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _row(phase: str, outputs: Outputs, bundle: Bundle, threshold: float) -> dict[str, Any]:
    metrics = classification_metrics(
        outputs.labels,
        _probs(outputs, bundle),
        bundle.fields.class_names,
        bundle.positive_indices,
        threshold,
    )
    figures = _decision(metrics) if len(bundle.fields.class_names) == 2 else _macro(metrics)
    return {"phase": phase, "threshold": threshold, **metrics, **figures}


def _decision(metrics: dict[str, Any]) -> dict[str, float | None]:
    binary = metrics["binary"]
    names = ("accuracy", "precision", "sensitivity", "f1")
    return {figure: binary[name] for figure, name in zip(FIGURES, names, strict=True)}


def _macro(metrics: dict[str, Any]) -> dict[str, float | None]:
    rows = metrics["per_class"].values()
    precisions = [row["precision"] or 0.0 for row in rows if row["recall"] is not None]
    return {
        "precision": float(np.mean(precisions)) if precisions else None,
        "recall": metrics["balanced_accuracy"],
        "f1": metrics["macro_f1"],
    }


def _intervals(outputs: Outputs, bundle: Bundle, groups: Ints) -> dict[str, Any]:
    found = metric_intervals(
        outputs.labels,
        _probs(outputs, bundle),
        groups,
        bundle.positive_indices,
        bundle.fields.threshold,
        seed=0,
    )
    decision = found.pop("decision_accuracy")
    if len(bundle.fields.class_names) == 2:  # as in the row's figures
        found["accuracy"] = decision
    return {name: asdict(interval) for name, interval in found.items()}


def _sets(outputs: Outputs, bundle: Bundle, groups: Ints) -> dict[str, Any] | None:
    sets, names = bundle.fields.prediction_sets, bundle.fields.class_names
    if sets is None:
        return None
    probs = _probs(outputs, bundle)
    return set_metrics(outputs.labels, probs, set_rule(sets), names, groups, seed=0)


def _probs(outputs: Outputs, bundle: Bundle) -> Any:  # noqa: ANN401 - an array
    return softmax(outputs.logits, bundle.fields.temperature)
