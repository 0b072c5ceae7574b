"""From slices to series, studies and patients: what the slices of one say together."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from braintumor_ray.decode.files import locations
from braintumor_ray.errors import ResultsError
from braintumor_ray.predict.results import read_results, results_folder

Level = Literal["series", "study", "patient"]

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


def read_studies(path: str | Path, level: Level = "series") -> pa.Table:
    """The current rows of a results folder, rolled up; see `roll_up`.

    Raises:
        ResultsError: as `read_results`.
    """
    meta = results_folder(path).meta
    names = meta["class_names"]
    positive = [names.index(name) for name in meta["positive_classes"]]
    return roll_up(read_results(path, COLUMNS), positive, level)


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
