"""Shortcuts: can a small classifier predict the class without looking at the brain?

Where image size or compression alone predicts the class, a network may learn that instead of
tumors, and its figures do not hold for scans from elsewhere.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.ensemble import RandomForestClassifier

from braintumor_ray.audit.copies import codes, readable_rows
from braintumor_ray.metrics.classification import auroc
from braintumor_ray.metrics.intervals import bootstrap_table, table_balanced_accuracy
from braintumor_ray.splits.splits import grouped_folds
from braintumor_ray.types import Floats, Ints

FOLDS = 5
SEED = 0  # of draw, folds, trees and resamples
MAX_ROWS = 5_000
_RESAMPLES = 500
NOTABLE = 0.05  # balanced accuracy above chance, at the interval's lower end

FEATURES: Mapping[str, tuple[str, ...]] = {
    "size": ("height", "width"),
    "aspect": ("aspect",),
    "border": ("border_mean", "border_black", "margin_vertical", "margin_horizontal"),
    "mode": ("mode",),
    "format": ("format",),
    "compression": ("bytes_per_pixel",),
    "jpeg": ("jpeg_luma", "jpeg_chroma", "jpeg_progressive"),
    "source": ("dataset",),
}


def shortcut_features(scans: pa.Table) -> dict[str, Floats]:
    """Numbers (n,) that describe how a scan was stored, not what it shows; NaN where unknown.

    Args:
        scans: a fingerprinted catalog (`fingerprints.FINGERPRINT_SCHEMA`) with column `dataset`.
    """
    height, width = _floats(scans["decoded_height"]), _floats(scans["decoded_width"])
    coded = {"mode": "decoded_mode", "format": "decoded_format", "dataset": "dataset"}
    return {
        "height": height,
        "width": width,
        "aspect": width / height,
        "bytes_per_pixel": _floats(scans["n_bytes"]) / (height * width),
        **{name: codes(scans[of].to_pylist())[1].astype(np.float64) for name, of in coded.items()},
        **{name: _floats(scans[name]) for name in FEATURES["border"] + FEATURES["jpeg"]},
    }


def shortcut_scores(scans: pa.Table, groups: Ints) -> dict[str, Any]:
    """Score how well each kind of feature predicts the class, cross-validated by group.

    A random forest with balanced class weights, five folds, groups kept together. Classes
    with fewer groups than folds are left out. Above `MAX_ROWS` scans whole groups are drawn at
    random up to it.

    Args:
        scans: a fingerprinted catalog with columns `label` and `dataset`.
        groups: int64 (n,), scans that are copies or of one patient share a group.

    Returns:
        `n`, `classes`, `folds`, `baseline` (chance: `balanced_accuracy` 1/k, `accuracy` of always
        the commonest class) and `features`: per kind `balanced_accuracy` with `low` and `high`
        (95%, by group), macro `auroc`, `constant` (no two scans differ) and `notable` (its lower
        end is more than 0.05 above chance). `features` is empty where fewer than two classes are
        left; then `note` explains it.
    """
    rows = usable_rows(scans, groups, MAX_ROWS)
    labels = scans["label"].take(pa.array(rows)).to_pylist()
    names, truth = codes(labels)
    result: dict[str, Any] = {"n": len(rows), "classes": names, "folds": FOLDS, "features": {}}
    if len(names) < 2:
        result["note"] = f"fewer than two classes have {FOLDS} independent groups of readable scans"
        return result
    counts = np.bincount(truth)
    result["baseline"] = {
        "balanced_accuracy": 1 / len(names),
        "accuracy": float(counts.max() / counts.sum()),
    }
    folds = grouped_folds(labels, groups[rows], FOLDS, SEED, allow_missing=True)
    columns = {name: values[rows] for name, values in shortcut_features(scans).items()}
    result["features"] = {
        kind: _score(matrix, truth, folds, groups[rows])
        for kind, matrix in _matrices(columns).items()
    }
    return result


def _matrices(columns: Mapping[str, Floats]) -> dict[str, Floats]:
    several = len(np.unique(columns["dataset"])) > 1
    kinds = {kind: names for kind, names in FEATURES.items() if kind != "source" or several}
    matrices = {
        kind: np.stack([columns[name] for name in names], axis=1) for kind, names in kinds.items()
    }
    return {**matrices, "all together": np.concatenate(list(matrices.values()), axis=1)}


def _score(matrix: Floats, truth: Ints, folds: Ints, groups: Ints) -> dict[str, Any]:
    k = int(truth.max()) + 1
    varying = matrix[:, [len(np.unique(column)) > 1 for column in matrix.T]]
    if not varying.shape[1]:
        chance = 1 / k
        return {
            **{"balanced_accuracy": chance, "low": chance, "high": chance, "auroc": 0.5},
            **{"constant": True, "notable": False},
        }
    probs = _held_out_probs(varying, truth, folds)
    cells = truth * k + probs.argmax(axis=1)
    interval = bootstrap_table(
        {"balanced_accuracy": table_balanced_accuracy}, groups, cells, k * k, seed=SEED,
        n_boot=_RESAMPLES,
    )["balanced_accuracy"]  # fmt: skip
    areas = [auroc(truth == c, probs[:, c]) for c in range(k)]
    return {
        "balanced_accuracy": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "auroc": float(np.mean([area for area in areas if area is not None])),
        "constant": False,
        "notable": interval.low is not None and interval.low > 1 / k + NOTABLE,
    }


def _held_out_probs(matrix: Floats, truth: Ints, folds: Ints) -> Floats:
    probs = np.zeros((len(truth), int(truth.max()) + 1))
    for fold in np.unique(folds):
        held_out = folds == fold
        model = RandomForestClassifier(
            n_estimators=60, min_samples_leaf=3, class_weight="balanced", random_state=SEED
        )
        model.fit(matrix[~held_out], truth[~held_out])
        probs[np.ix_(held_out, model.classes_)] = model.predict_proba(matrix[held_out])
    return probs


def usable_rows(scans: pa.Table, groups: Ints, max_rows: int) -> Ints:
    """Readable, labeled rows of classes with enough groups; whole groups, ascending."""
    names, label = codes(scans["label"].to_pylist())
    usable = readable_rows(scans) & (label >= 0)
    enough = [
        code
        for code in range(len(names))
        if len(np.unique(groups[usable & (label == code)])) >= FOLDS
    ]
    usable &= np.isin(label, enough)
    rows = np.flatnonzero(usable)
    if len(rows) <= max_rows:
        return rows
    drawn = np.random.default_rng(SEED).permutation(np.unique(groups[rows]))
    size = np.bincount(groups[rows], minlength=int(groups.max()) + 1)[drawn]
    kept, room = list[int](), max_rows
    for group, count in zip(drawn.tolist(), size.tolist(), strict=True):
        if count <= room:  # one that is too large ends nothing: there is room for smaller ones
            kept.append(group)
            room -= count
    return rows[np.isin(groups[rows], kept)]


def _floats(column: pa.ChunkedArray) -> Floats:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
