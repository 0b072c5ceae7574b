"""From slices to series, studies and patients: what the slices of one say together."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from braintumor_ray.decode.files import locations
from braintumor_ray.errors import ResultsError, UsageError
from braintumor_ray.predict.results import read_results, results_folder
from braintumor_ray.storage import write_atomically, write_table

Level = Literal["series", "study", "patient"]
Aggregate = Literal["max", "mean"]
LEVELS: tuple[Level, ...] = ("series", "study", "patient")
AGGREGATES: tuple[Aggregate, ...] = ("max", "mean")

COLUMNS = [
    "scan_id",
    "uri",
    "frame",
    "patient_key",
    "study_key",
    "series_key",
    "status",
    "probabilities",
    "decision",
    "out_of_domain",
]

STUDY_SCHEMA = pa.schema(
    [
        pa.field("patient_key", pa.string()),
        pa.field("study_key", pa.string()),
        pa.field("series_key", pa.string()),
        pa.field("slices", pa.int64(), nullable=False),
        pa.field("used", pa.int64(), nullable=False),
        pa.field("out_of_domain", pa.int64(), nullable=False),
        pa.field("quarantined", pa.int64(), nullable=False),
        pa.field("skipped", pa.int64(), nullable=False),
        pa.field("max_probability", pa.float32()),
        pa.field("mean_probability", pa.float32()),
        pa.field("decision", pa.bool_()),
        pa.field("top_scan_id", pa.int64()),
        pa.field("top_uri", pa.string()),
        pa.field("top_frame", pa.int32()),
    ]
)


def read_studies(
    path: str | Path, level: Level = "series", aggregate: Aggregate = "max"
) -> pa.Table:
    """The current rows of a results folder, rolled up; see `roll_up`.

    Raises:
        ResultsError: as `read_results` and `roll_up`.
    """
    meta = results_folder(path).meta
    names = meta["class_names"]
    positive = [names.index(name) for name in meta["positive_classes"]]
    rolled = roll_up(read_results(path, COLUMNS), positive, level)
    return rolled if aggregate == "max" else decided_by_mean(rolled, meta["threshold"])


def write_studies(
    path: str | Path, location: str | Path, level: Level, aggregate: Aggregate
) -> pa.Table:
    """Roll up a results folder and write it, whole or not at all.

    Args:
        path: the results.
        location: of the file to write: .csv, or .parquet.
        level: what makes a row.
        aggregate: what decides, as for `read_studies`.

    Returns:
        What was written.

    Raises:
        UsageError: another kind of file.
        ResultsError: as `read_studies`.
    """
    suffix = Path(location).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise UsageError(
            f"--output '{location}' is neither .csv nor .parquet; end it in one of them"
        )
    studies = read_studies(path, level, aggregate)
    if suffix == ".parquet":
        write_table(location, studies)
        return studies
    from pyarrow import csv

    buffer = io.BytesIO()
    csv.write_csv(studies, buffer)
    write_atomically(location, buffer.getvalue())
    return studies


def summarize_studies(studies: pa.Table) -> dict[str, int]:
    """How many rows there are, how many of them are positive, negative, and without an answer."""
    decisions = studies["decision"].to_pylist()
    return {
        "rows": len(decisions),
        "positive": decisions.count(True),
        "negative": decisions.count(False),
        "undecided": decisions.count(None),
        "slices": sum(studies["slices"].to_pylist()),
        "slices_used": sum(studies["used"].to_pylist()),
    }


def decided_by_mean(rolled: pa.Table, threshold: float) -> pa.Table:
    """The rows of `roll_up` decided and sorted by the mean probability of their slices.

    Args:
        rolled: `STUDY_SCHEMA`.
        threshold: of the bundle; a mean that reaches it is positive.
    """
    rows = rolled.to_pylist()
    for row in rows:
        if row["used"]:
            row["decision"] = row["mean_probability"] >= np.float32(threshold)
    rows.sort(key=lambda row: (row["used"] == 0, -(row["mean_probability"] or 0.0)))
    return pa.Table.from_pylist(rows, schema=STUDY_SCHEMA)


def roll_up(rows: pa.Table, positive: Sequence[int], level: Level = "series") -> pa.Table:
    """One row per series, study or patient.

    The probability of a slice is the sum over the positive classes. Slices that are out of domain
    are counted but not used; the decision is that of the most probable slice. A scan without a key
    of the level, or of a narrower one, is a group of its own (all frames of its file together):
    unknown patients are never taken for the same.

    Args:
        rows: of `read_results`, with `COLUMNS`.
        positive: indices of the positive classes in `probabilities`.
        level: what makes a group.

    Returns:
        `STUDY_SCHEMA`, the most probable first and those without any usable slice last. A key that
        is not the same in all rows of a group is null. Probabilities, decision and the most
        probable slice are null where no slice is usable.

    Raises:
        ResultsError: `level` is unknown.
    """
    if level not in _WIDER:
        raise ResultsError(f"level '{level}' is unknown; use {', '.join(_WIDER)}")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row, file in zip(rows.select(COLUMNS).to_pylist(), locations(rows), strict=True):
        groups.setdefault(_group(row, level, file), []).append(row)
    rolled = [_summary(members, positive) for members in groups.values()]
    rolled.sort(key=_urgency)
    return pa.Table.from_pylist(rolled, schema=STUDY_SCHEMA)


# By which keys a row belongs to a group, the level's own first.
_WIDER: dict[str, tuple[str, ...]] = {
    "series": ("series_key",),
    "study": ("study_key", "series_key"),
    "patient": ("patient_key", "study_key", "series_key"),
}


def _group(row: dict[str, Any], level: Level, file: str) -> tuple[str, ...]:
    for name in _WIDER[level]:
        if row[name] is not None:
            # The patient as well: a series key is a hash of a UID that a careless copy may repeat.
            return (name, row[name], row["patient_key"] or "")
    return ("uri", file, row["patient_key"] or "")


def _summary(members: Sequence[dict[str, Any]], positive: Sequence[int]) -> dict[str, Any]:
    ok = [row for row in members if row["status"] == "ok"]
    usable = [(_tumor(row, positive), row) for row in ok if not row["out_of_domain"]]
    summary: dict[str, Any] = {
        **{key: _common(row[key] for row in members) for key in STUDY_SCHEMA.names[:3]},
        "slices": len(members),
        "used": len(usable),
        "out_of_domain": len(ok) - len(usable),
        "quarantined": sum(row["status"] == "quarantined" for row in members),
        "skipped": sum(row["status"] == "skipped" for row in members),
    }
    if not usable:
        return summary
    # Of several equal probability the first in the archive, so that the answer is always the same.
    highest, row = min(usable, key=lambda pair: (-pair[0], pair[1]["uri"], pair[1]["frame"]))
    return summary | {
        "max_probability": highest,
        "mean_probability": sum(value for value, _ in usable) / len(usable),
        "decision": row["decision"],
        "top_scan_id": row["scan_id"],
        "top_uri": row["uri"],
        "top_frame": row["frame"],
    }


def _tumor(row: dict[str, Any], positive: Sequence[int]) -> float:
    return float(sum(row["probabilities"][index] for index in positive))


def _common(values: Iterable[str | None]) -> str | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _urgency(row: dict[str, Any]) -> tuple[bool, float]:
    return row["used"] == 0, -row.get("max_probability", 0.0)
