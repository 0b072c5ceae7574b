"""From slices to series, studies and patients: one row for all slices of a group."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from braintumor_ray.decode.files import locations
from braintumor_ray.errors import ResultsError
from braintumor_ray.predict.results import read_results, results_folder

Level = Literal["series", "study", "patient"]

_KEYS = ("patient_key", "study_key", "series_key")
_COUNTS = ("slices", "used", "out_of_domain", "quarantined", "skipped")
_FIGURES = ("status", "probabilities", "decision", "out_of_domain")
COLUMNS = ["scan_id", "uri", "frame", *_KEYS, *_FIGURES]

STUDY_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in _KEYS),
        *(pa.field(name, pa.int64(), nullable=False) for name in _COUNTS),
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
    if level not in _NARROWER:
        raise ResultsError(f"level '{level}' is unknown; use {', '.join(_NARROWER)}")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row, file in zip(rows.select(COLUMNS).to_pylist(), locations(rows), strict=True):
        groups.setdefault(_group(row, level, file), []).append(row)
    rolled = [_summary(members, positive) for members in groups.values()]
    rolled.sort(key=lambda row: (row["used"] == 0, -row.get("max_probability", 0.0)))
    return pa.Table.from_pylist(rolled, schema=STUDY_SCHEMA)


# By which keys a row belongs to a group, the level's own first, then the narrower ones.
_NARROWER = {"series": _KEYS[2:], "study": _KEYS[1:], "patient": _KEYS}


def _group(row: dict[str, Any], level: Level, file: str) -> tuple[str, ...]:
    for name in _NARROWER[level]:
        if row[name] is not None:
            # The patient as well: a series key is a hash of a UID that a careless copy may repeat.
            return (name, row[name], row["patient_key"] or "")
    return ("uri", file, row["patient_key"] or "")


def _summary(members: Sequence[dict[str, Any]], positive: Sequence[int]) -> dict[str, Any]:
    status = Counter(row["status"] for row in members)
    used = [row for row in members if row["status"] == "ok" and not row["out_of_domain"]]
    usable = [(float(sum(row["probabilities"][i] for i in positive)), row) for row in used]
    summary: dict[str, Any] = {
        **{key: _common(row[key] for row in members) for key in _KEYS},
        "slices": len(members),
        "used": len(usable),
        "out_of_domain": status["ok"] - len(usable),
        "quarantined": status["quarantined"],
        "skipped": status["skipped"],
    }
    if not usable:
        return summary
    # Of several equal probability the first in the archive, so that the answer is always the same.
    highest, row = min(usable, key=lambda pair: (-pair[0], pair[1]["uri"], pair[1]["frame"]))
    return summary | {
        "max_probability": highest,
        "mean_probability": sum(value for value, _ in usable) / len(usable),
        "decision": row["decision"],
        **{f"top_{name}": row[name] for name in ("scan_id", "uri", "frame")},
    }


def _common(values: Iterable[str | None]) -> str | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None
