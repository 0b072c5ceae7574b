"""From slices to series, studies and patients: one row for all slices of a group."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from braintumor_ray.decode.files import locations
from braintumor_ray.errors import ResultsError, UsageError
from braintumor_ray.predict.results import read_results, results_folder
from braintumor_ray.storage import read_bytes, write_atomically, write_table

Level = Literal["series", "study", "patient"]
Aggregate = Literal["max", "mean"]
LEVELS: tuple[Level, ...] = get_args(Level)
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)

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


@dataclass(frozen=True)
class StudyRule:
    """How the slices of a group decide together.

    Attributes:
        aggregate: "max": the most probable slice; "mean": the mean of the slices.
        threshold: of the aggregate; None: that of the bundle.
    """

    aggregate: Aggregate = "max"
    threshold: float | None = None


def chosen_rule(evaluation: str | Path, results: str | Path, level: Level) -> StudyRule:
    """The rule that an evaluation chose on its validation scans.

    Args:
        evaluation: folder of `evaluate`, with metrics.json.
        results: where the rule is to be used.
        level: study or patient; nothing is chosen for series.

    Raises:
        ResultsError: no such evaluation, one of another bundle, or one that chose nothing.
    """
    path = f"{str(evaluation).rstrip('/')}/metrics.json"
    try:
        metrics = json.loads(read_bytes(path))
        fingerprint = metrics["bundle"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"'{path}' cannot be read; give a folder of `evaluate`") from error
    if fingerprint != (own := results_folder(results).meta["bundle_fingerprint"]):
        raise ResultsError(
            f"'{evaluation}' is of bundle {fingerprint} and '{results}' of {own}; "
            "evaluate the bundle that scored"
        )
    found = metrics.get({"study": "studies", "patient": "patients"}.get(level, "")) or {}
    if (chosen := found.get("chosen")) is None:
        raise ResultsError(
            f"'{evaluation}' chose no rule for level '{level}'; it needs study or patient keys in "
            "the validation scans, with and without a tumor"
        )
    return StudyRule(chosen["aggregate"], chosen["threshold"])


def read_studies(
    path: str | Path, level: Level = "series", aggregate: Aggregate | StudyRule = "max"
) -> pa.Table:
    """The current rows of a results folder, rolled up; see `roll_up`.

    Args:
        path: the results.
        level: what makes a row.
        aggregate: what decides, at the threshold of the bundle; or a rule with its own.

    Raises:
        ResultsError: as `read_results` and `roll_up`.
    """
    rule = aggregate if isinstance(aggregate, StudyRule) else StudyRule(aggregate)
    meta = results_folder(path).meta
    names = meta["class_names"]
    positive = [names.index(name) for name in meta["positive_classes"]]
    rolled = roll_up(read_results(path, COLUMNS), positive, level)
    if rule == StudyRule():  # the slice's own decision
        return rolled
    threshold = meta["threshold"] if rule.threshold is None else rule.threshold
    return decided_by(rolled, rule.aggregate, threshold)


def write_studies(
    path: str | Path, location: str | Path, level: Level, aggregate: Aggregate | StudyRule
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


def decided_by(rolled: pa.Table, aggregate: Aggregate, threshold: float) -> pa.Table:
    """The rows of `roll_up` decided and sorted by an aggregate of their slices' probabilities.

    Args:
        rolled: `STUDY_SCHEMA`.
        aggregate: which one.
        threshold: an aggregate that reaches it is positive.
    """
    name = f"{aggregate}_probability"
    rows = rolled.to_pylist()
    for row in rows:
        if row["used"]:
            row["decision"] = row[name] >= np.float32(threshold)
    rows.sort(key=lambda row: (row["used"] == 0, -(row[name] or 0.0)))
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
