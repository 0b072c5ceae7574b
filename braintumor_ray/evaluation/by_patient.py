"""Decision and class per study and patient: what the slices of one show together."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.metrics.classification import auroc, binary_metrics, classification_metrics
from braintumor_ray.metrics.intervals import metric_intervals
from braintumor_ray.metrics.thresholds import stated_threshold, threshold_by
from braintumor_ray.predict.study import AGGREGATES, Aggregate, Level, roll_up
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


CLASS_FIGURES = ("accuracy", "balanced_accuracy", "macro_f1")


def per_study_and_patient(
    evaluated: Evaluated, validation: Evaluated | None, *, seed: int, n_boot: int
) -> dict[str, Any]:
    """`studies` and `patients` of metrics.json, each None where no measured scan has such a key.

    Args:
        evaluated: whose measured scans are rolled up.
        validation: other scans of the same bundle, on which rule and threshold are chosen; None:
            nothing is chosen.
        seed: of the resamples, which draw patients.
        n_boot: number of resamples.

    Returns:
        Per level the keys of `rolled_up`, and
        `chosen`: of the decision, `aggregate` and `threshold` with the best AUROC and F1 (or the
        recipe's rule) on validation, `chosen_from` (rows there), and their figures here; None
        where validation has no keys, or rows of one kind only.
        `classes`: `rows`, `mixed` (more than one class, left out), `undecided`, for `max` (the
        most suspicious slice) and `mean` (of the probabilities) the `CLASS_FIGURES` with their
        `intervals`, and `chosen` (by balanced accuracy on validation, or None).
    """
    found: dict[str, Any] = {}
    for name, level in (("studies", "study"), ("patients", "patient")):
        part = rolled_up(evaluated, level, seed=seed, n_boot=n_boot)  # type: ignore[arg-type]
        if part is not None:
            resampling = {"seed": seed, "n_boot": n_boot}
            part["chosen"] = _chosen(evaluated, validation, level, **resampling)  # type: ignore[arg-type]
            part["classes"] = _by_class(evaluated, validation, level, **resampling)  # type: ignore[arg-type]
        found[name] = part
    return found


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
    rolled = _decided(evaluated, level)
    if rolled is None:
        return None
    answers, used, truth = rolled.answers, rolled.used, rolled.truth
    cut = float(np.float32(evaluated.fields.threshold))
    return {
        "rows": len(answers),
        "positive": sum(truth.values()),
        "undecided": len(answers) - len(used),
        "scans_without_key": rolled.without_key,
        **{how: _measured(used, how, cut, seed=seed, n_boot=n_boot) for how in AGGREGATES},
    }


@dataclass(frozen=True)
class _Decided:
    """Rolled-up rows: all, those with an answer and their truth, and the truth by key."""

    answers: list[dict[str, Any]]
    used: list[tuple[dict[str, Any], bool]]
    truth: dict[tuple[Any, ...], bool]
    without_key: int


def _decided(evaluated: Evaluated, level: Level) -> _Decided | None:
    """The measured scans with a key of a level, rolled up; None without such."""
    keys = _KEYS[level]
    rows = _rows_with_key(evaluated, level)
    if not len(rows):
        return None
    foreign = evaluated.outputs.out_of_domain[rows]
    answers = _roll_up(evaluated, rows, evaluated.scores[rows], foreign, level)
    # The largest of the slices' truth, every slice counted, is the truth of the whole.
    tumor = np.isin(evaluated.truth.indices[rows], evaluated.positive)
    truths = _roll_up(evaluated, rows, tumor, np.zeros(len(rows), bool), level)
    truth = {_key(row, keys): row["max_probability"] > 0.5 for row in truths}
    used = [(row, truth[_key(row, keys)]) for row in answers if row["used"]]
    return _Decided(answers, used, truth, len(evaluated.measured) - len(rows))


def _rows_with_key(evaluated: Evaluated, level: Level) -> Ints:
    column = evaluated.rows[_KEYS[level][-1]].take(pa.array(evaluated.measured))
    return evaluated.measured[column.is_valid().to_numpy()]


def _chosen(
    evaluated: Evaluated, validation: Evaluated | None, level: Level, *, seed: int, n_boot: int
) -> dict[str, Any] | None:
    """Aggregate and threshold from validation, measured on the evaluated scans."""
    theirs = None if validation is None else _decided(validation, level)
    ours = _decided(evaluated, level)
    truth = np.array([flag for _, flag in theirs.used]) if theirs else np.empty(0, bool)
    if ours is None or theirs is None or truth.all() or not truth.any():
        return None
    scores = {how: _scores(theirs.used, how) for how in AGGREGATES}
    # The mean where both are equal: it depends less on the number of slices.
    how: Aggregate = max(("mean", "max"), key=lambda name: auroc(truth, scores[name]) or 0.0)  # type: ignore[assignment, arg-type]
    rule = evaluated.fields.recipe.get("threshold_by", "f1")
    if stated_threshold(rule) is not None:  # of single slices, and says nothing of their maximum
        rule = "f1"
    threshold = threshold_by(rule, truth, scores[how])
    figures = _measured(ours.used, how, threshold, seed=seed, n_boot=n_boot)
    if figures is None:
        return None
    return {
        "aggregate": how,
        "threshold": threshold,
        "chosen_on": "val",
        "chosen_from": len(truth),
        **figures,
    }


def _scores(used: Sequence[tuple[Mapping[str, Any], bool]], how: Aggregate) -> Floats:
    # Sums of float32 exceed 1.
    return np.clip([row[f"{how}_probability"] for row, _ in used], 0, 1).astype(np.float64)


@dataclass(frozen=True)
class _Classes:
    """Classes of studies or patients: truth (g,), probabilities (g, k) by rule, patients (g,)."""

    truth: Ints
    probs: dict[str, Floats]
    patients: list[str]
    mixed: int
    undecided: int


def _class_groups(evaluated: Evaluated, level: Level) -> _Classes:
    """Truth: the only class of the slices, those without a tumor not counted if others have one."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    table = evaluated.rows.select(_KEYS[level]).to_pylist()
    for row in _rows_with_key(evaluated, level).tolist():
        groups.setdefault(tuple(table[row].values()), []).append(row)
    truth, patients, mixed, undecided = [], [], 0, 0
    probs: dict[str, list[Any]] = {how: [] for how in AGGREGATES}
    for number, (key, members) in enumerate(groups.items()):
        kinds = {int(index) for index in evaluated.truth.indices[members]}
        kinds = kinds & {*evaluated.positive} or kinds
        used = [row for row in members if not evaluated.outputs.out_of_domain[row]]
        mixed += len(kinds) > 1
        undecided += len(kinds) == 1 and not used
        if len(kinds) > 1 or not used:
            continue
        truth.append(kinds.pop())
        patients.append(key[0] or f"row {number}")
        own = evaluated.all_probs[used].astype(np.float64)
        probs["max"].append(own[evaluated.scores[used].argmax()])
        probs["mean"].append(own.mean(axis=0))
    k = len(evaluated.fields.class_names)
    stacked = {how: np.array(rows).reshape(-1, k) for how, rows in probs.items()}
    return _Classes(np.array(truth, np.int64), stacked, patients, mixed, undecided)


def _by_class(
    evaluated: Evaluated, validation: Evaluated | None, level: Level, *, seed: int, n_boot: int
) -> dict[str, Any]:
    ours = _class_groups(evaluated, level)
    theirs = None if validation is None else _class_groups(validation, level)
    chosen = None
    if theirs is not None and len(theirs.truth):
        balanced = {
            how: _class_metrics(validation or evaluated, theirs, how)["balanced_accuracy"]
            for how in ("mean", "max")  # the mean where both are equal
        }
        chosen = max(balanced, key=lambda how: balanced[how] or 0.0)
    return {
        "rows": len(ours.truth) + ours.mixed + ours.undecided,
        "mixed": ours.mixed,
        "undecided": ours.undecided,
        "chosen": chosen,
        **{
            how: _class_figures(evaluated, ours, how, seed=seed, n_boot=n_boot)
            for how in AGGREGATES
        },
    }


def _class_metrics(evaluated: Evaluated, groups: _Classes, how: Aggregate | str) -> dict[str, Any]:
    names, cut = evaluated.fields.class_names, evaluated.fields.threshold
    return classification_metrics(groups.truth, groups.probs[how], names, evaluated.positive, cut)


def _class_figures(
    evaluated: Evaluated, groups: _Classes, how: Aggregate, *, seed: int, n_boot: int
) -> dict[str, Any] | None:
    """Figures of the classes with intervals that draw patients; None without groups."""
    if not len(groups.truth):
        return None
    found = _class_metrics(evaluated, groups, how)
    intervals = metric_intervals(
        groups.truth,
        groups.probs[how],
        np.array(groups.patients),
        evaluated.positive,
        float(np.float32(evaluated.fields.threshold)),
        seed=seed,
        n_boot=n_boot,
    )
    return {
        **{name: found[name] for name in CLASS_FIGURES},
        "confusion_matrix": found["confusion_matrix"],
        "intervals": {name: asdict(intervals[name]) for name in CLASS_FIGURES},
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
    how: Aggregate,
    threshold: float,
    *,
    seed: int,
    n_boot: int,
) -> dict[str, Any] | None:
    """Figures of rolled-up rows and their truth; None without rows."""
    if not used:
        return None
    truth = np.array([flag for _, flag in used])
    score = _scores(used, how)
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
