"""The tumor decision per study and patient: what the slices of one say together."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.metrics.classification import binary_metrics
from braintumor_ray.metrics.intervals import metric_intervals
from braintumor_ray.predict.study import AGGREGATES, Level, roll_up
from braintumor_ray.types import Bools, Floats, Ints

DECISION_INTERVALS = {  # figures of the tumor decision, and their names in `metric_intervals`
    "auroc": "auroc",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "accuracy": "decision_accuracy",
}
_KEYS: dict[Level, tuple[str, ...]] = {
    "series": ("patient_key", "series_key"),
    "study": ("patient_key", "study_key"),
    "patient": ("patient_key",),
}


def rolled_up(
    evaluated: Evaluated, level: Level, *, seed: int, n_boot: int
) -> dict[str, Any] | None:
    """The decision per series, study or patient, of the most probable slice and of the mean.

    One with a measured slice that shows a tumor is positive. Slices that are out of domain take
    no part, as in `predict.study.roll_up`; one that has no others is undecided.

    Args:
        evaluated: whose measured scans are rolled up.
        level: what makes a row.
        seed: of the resamples, which draw patients.
        n_boot: number of resamples.

    Returns:
        `rows`, `positive` (truly), `undecided`, `scans_without_key` (left out here), and for `max`
        and `mean` the figures of `binary_metrics` and their `intervals`, None where all are
        undecided. None: no measured scan has a key of this level.
    """
    keys = _KEYS[level]
    known = evaluated.rows[keys[-1]].take(pa.array(evaluated.measured)).is_valid().to_numpy()
    rows = evaluated.measured[known]
    if not len(rows):
        return None
    foreign = evaluated.outputs.out_of_domain[rows]
    answers = _roll_up(evaluated, rows, evaluated.scores[rows], foreign, level)
    # The largest of the slices' truth, every slice counted, is the truth of the whole.
    tumor = np.isin(evaluated.truth.indices[rows], evaluated.positive)
    truths = _roll_up(evaluated, rows, tumor, np.zeros(len(rows), bool), level)
    truth = {_key(row, keys): row["max_probability"] > 0.5 for row in truths}
    used = [(row, truth[_key(row, keys)]) for row in answers if row["used"]]
    cut = float(np.float32(evaluated.fields.threshold))
    return {
        "rows": len(answers),
        "positive": sum(truth.values()),
        "undecided": len(answers) - len(used),
        "scans_without_key": int((~known).sum()),
        **{
            how: _measured(used, f"{how}_probability", cut, seed=seed, n_boot=n_boot)
            for how in AGGREGATES
        },
    }


def _roll_up(
    evaluated: Evaluated, rows: Ints, scores: NDArray[Any], foreign: Bools, level: Level
) -> list[dict[str, Any]]:
    """`roll_up` of some rows, of one probability each, (m,)."""
    kept = ["scan_id", "uri", "frame", "patient_key", "study_key", "series_key"]
    table = evaluated.rows.select(kept).take(pa.array(rows))
    columns = {
        "status": pa.array(["ok"] * len(rows)),
        "probabilities": pa.array([[float(score)] for score in scores]),
        "decision": pa.array(evaluated.decisions[rows]),
        "out_of_domain": pa.array(foreign),
    }
    for name, values in columns.items():
        table = table.append_column(name, values)
    rolled: list[dict[str, Any]] = roll_up(table, [0], level).to_pylist()
    return rolled


def _key(row: Mapping[str, Any], keys: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in keys)


def _measured(
    used: Sequence[tuple[Mapping[str, Any], bool]],
    column: str,
    threshold: float,
    *,
    seed: int,
    n_boot: int,
) -> dict[str, Any] | None:
    """Figures of rolled-up rows and their truth; None without rows."""
    if not used:
        return None
    truth = np.array([flag for _, flag in used])
    score: Floats = np.clip([row[column] for row, _ in used], 0, 1)  # sums of float32 exceed 1
    # Studies of one patient belong together; one whose patient is not known is alone.
    patients = [row["patient_key"] or f"row {n}" for n, (row, _) in enumerate(used)]
    intervals = metric_intervals(
        truth.astype(np.int64),
        np.stack([1 - score, score], axis=1),
        np.array(patients),
        [1],
        threshold,
        seed=seed,
        n_boot=n_boot,
    )
    return {
        **binary_metrics(truth, score, threshold),
        "intervals": {name: asdict(intervals[key]) for name, key in DECISION_INTERVALS.items()},
    }
