"""Labels that reviewers gave: the file that `review` appends to and that `train` takes.

A file of JSON lines, one for each thing a reviewer did (see docs/decisions/016-review.md). A line
tells of one scan (`path`, `frame`), who and when (`reviewer`, `time`), and of what was changed:
`verdict` with `label`, `boxes`, or `note`. Of each of these the newest line is valid; all lines
stay. Or a table (.csv, .parquet) with columns `path`, `label` and perhaps `frame`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from braintumor_ray.catalog.labels import Groups
from braintumor_ray.catalog.options import is_table
from braintumor_ray.catalog.sources import SOURCE
from braintumor_ray.catalog.tables import read_records
from braintumor_ray.errors import CatalogError
from braintumor_ray.storage import open_filesystem, read_bytes
from braintumor_ray.types import FractionBox

SOURCE_LABEL = "label_of_source"  # what a catalog's label was before a reviewer gave another
Key = tuple[str, int]  # path below the source's root, frame
Event = dict[str, Any]


@dataclass(frozen=True)
class Reviewed:
    """What is known of one scan by review, the newest of each kind.

    Attributes:
        path, frame: of the scan, as its catalog has them.
        verdict: 'right' or 'wrong', of the prediction; None: neither.
        label: the class; None: not given, as where a prediction is only called wrong.
        boxes: (x_min, y_min, x_max, y_max) in fractions of width and height.
        note: free text.
        reviewer, time: of the newest change; time as ISO 8601, UTC.
    """

    path: str
    frame: int = 0
    verdict: str | None = None
    label: str | None = None
    boxes: tuple[FractionBox, ...] = ()
    note: str = ""
    reviewer: str = ""
    time: str = ""

    def changed(self, event: Mapping[str, Any]) -> "Reviewed":
        """The same after one more event: what it does not name stays as it was."""
        names = ("verdict", "label", "note", "reviewer", "time")
        values: dict[str, Any] = {name: event[name] for name in names if name in event}
        if "boxes" in event:
            values["boxes"] = _boxes(event["boxes"])
        return replace(self, **values)


def read_reviewed(location: str) -> dict[Key, Reviewed]:
    """The newest state of each scan in a file of labels.

    Raises:
        CatalogError: it cannot be read, or is neither JSON lines nor a table of labels.
    """
    if location.lower().endswith(".parquet"):
        return _of_rows(location, _parquet_rows(location))
    if is_table(location):
        return _of_rows(location, _table_rows(location))
    return newest(read_events(location))


def read_events(location: str) -> list[Event]:
    """All lines of a file of labels, oldest first.

    A last line that is not whole is one whose writing was interrupted: it was never confirmed to
    the reviewer and is left out.

    Raises:
        CatalogError: it cannot be read, or a whole line is damaged.
    """
    try:
        *lines, last = read_bytes(location).split(b"\n")
    except OSError as error:
        raise CatalogError(
            f"labels '{location}' cannot be read ({error.strerror or error}); give the file that "
            "'braintumor-ray review' wrote"
        ) from error
    if is_event(last):
        lines.append(last)
    return [_event(line, number, location) for number, line in enumerate(lines, 1) if line.strip()]


def is_event(line: bytes) -> bool:
    """Whether a line is whole, also where other tools wrote no newline after it.

    Of a line that was cut off at least the last brace is missing.
    """
    try:
        _checked(json.loads(line))
    except (ValueError, KeyError, TypeError):
        return False
    return True


def newest(events: Iterable[Event]) -> dict[Key, Reviewed]:
    """The state of each scan after all events."""
    found: dict[Key, Reviewed] = {}
    for event in events:
        key = (str(event["path"]), int(event["frame"]))
        found[key] = found.get(key, Reviewed(*key)).changed(event)
    return found


def boxes_by_path(reviewed: Mapping[Key, Reviewed]) -> dict[str, tuple[FractionBox, ...]]:
    """Boxes of single pictures by path; truth knows no further frames."""
    first = (seen for seen in reviewed.values() if not seen.frame)
    return {seen.path: seen.boxes for seen in first if seen.boxes}


def with_reviewed_labels(
    catalog: pa.Table, reviewed: Mapping[Key, Reviewed], location: str, groups: Groups | None = None
) -> tuple[pa.Table, str]:
    """The catalog with the labels of reviewers in place of the source's.

    Args:
        catalog: of any source; its own labels are kept in column `label_of_source`.
        reviewed: see `read_reviewed`.
        location: of the file, for messages.
        groups: labels by class where `--classes` merges labels: a reviewer who chose the merged
            class means the first of its labels.

    Returns:
        The catalog and a sentence on what has changed.

    Raises:
        CatalogError: labels were given, and none is of a scan of this catalog; or one is of scans
            of several sources.
    """
    given = {key: _member(seen.label, groups) for key, seen in reviewed.items() if seen.label}
    before = catalog[SOURCE_LABEL if SOURCE_LABEL in catalog.column_names else "label"]
    old = before.to_pylist()
    found = _found(catalog, given, location)
    if given and not any(label is not None for label in found):
        path = next(iter(given))[0]
        raise CatalogError(
            f"none of the {len(given)} labels of '{location}' is of a scan of this source (the "
            f"first is of '{path}'); give the source that was scored and reviewed"
        )
    labels = [new if new is not None else own for new, own in zip(found, old, strict=True)]
    catalog = _with_column(catalog, SOURCE_LABEL, before)
    catalog = _with_column(catalog, "label", pa.array(labels, pa.string()))
    return catalog, _summary(location, given, found, old)


def _found(catalog: pa.Table, given: Mapping[Key, str], location: str) -> list[str | None]:
    """The label of each scan: by its path in the catalog, else by that in the source it is of.

    Raises:
        CatalogError: a path is of scans of several sources.
    """
    paths, frames = catalog["path"].to_pylist(), catalog["frame"].to_pylist()
    keys: list[Key] = list(zip(paths, frames, strict=True))
    if SOURCE not in catalog.column_names:
        return [given.get(key) for key in keys]
    whole, owner, found = set(keys), dict[Key, str](), list[str | None]()
    for (path, frame), source in zip(keys, catalog[SOURCE].to_pylist(), strict=True):
        # Paths of several sources begin with the source's name, that of a reviewed one does not.
        bare = (path.removeprefix(f"{source}/"), frame)
        label = given.get(bare) if bare not in whole else None
        if label is not None and (other := owner.setdefault(bare, path)) != path:
            raise CatalogError(
                f"the label of '{bare[0]}' in '{location}' is of '{other}' or '{path}'; name the "
                "scan by one of these paths"
            )
        found.append(given.get((path, frame), label))
    return found


def _member(label: str, groups: Groups | None) -> str:
    members = (groups or {}).get(label, [label])
    return label if label in members else members[0]


def _summary(
    location: str,
    given: Mapping[Key, str],
    found: Sequence[str | None],
    old: Sequence[str | None],
) -> str:
    pairs = [(new, own) for new, own in zip(found, old, strict=True) if new is not None]
    new = sum(own is None for _, own in pairs)
    other = sum(own is not None and own != label for label, own in pairs)
    text = (
        f"{len(pairs)} labels of '{location}': {other} differ from the source's, {new} of scans "
        "without one"
    )
    absent = len(given) - len(pairs)
    return text + (f"; {absent} are of no scan of this source" if absent > 0 else "")


def _with_column(table: pa.Table, name: str, values: Any) -> pa.Table:  # noqa: ANN401 - Arrow
    if name not in table.column_names:
        return table.append_column(name, values)
    return table.set_column(table.column_names.index(name), name, values)


def _event(line: bytes, number: int, location: str) -> Event:
    try:
        return _checked(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise CatalogError(
            f"line {number} of '{location}' is no label ({line[:40]!r}); remove the line, or give "
            "the file that 'braintumor-ray review' wrote"
        ) from error


def _checked(found: Any) -> Event:  # noqa: ANN401 - parsed JSON
    if not isinstance(found["path"], str):
        raise TypeError("path is no text")
    if not isinstance(found.get("label"), str | None):
        raise TypeError("label is no text")
    _boxes(found.get("boxes", ()))
    return {**found, "frame": int(found.get("frame") or 0)}


def _boxes(found: Iterable[Iterable[float]]) -> tuple[FractionBox, ...]:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in found)


def _table_rows(location: str) -> list[dict[str, Any]]:
    table = read_records(location)
    return [dict(zip(table.columns, cells, strict=True)) for cells in table.rows()]


def _parquet_rows(location: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    filesystem, inner = open_filesystem(location)
    try:
        rows: list[dict[str, Any]] = pq.read_table(inner, filesystem=filesystem).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise CatalogError(f"labels '{location}' cannot be read: {error}") from error
    return rows


def _of_rows(location: str, rows: Sequence[Mapping[str, Any]]) -> dict[Key, Reviewed]:
    missing = [name for name in ("path", "label") if not rows or name not in rows[0]]
    if missing:
        raise CatalogError(
            f"labels '{location}' have no column '{missing[0]}'; a table of labels has columns "
            "path, label and perhaps frame"
        )
    found = (_of_row(row, number, location) for number, row in enumerate(rows, 1))
    return {(seen.path, seen.frame): seen for seen in found if seen.label or seen.boxes}


def _of_row(row: Mapping[str, Any], number: int, location: str) -> Reviewed:
    try:
        told = row.get("boxes") or ()  # JSON, or in Parquet perhaps a list
        boxes = _boxes(json.loads(told) if isinstance(told, str) else told)
        label = None if row["label"] in (None, "") else str(row["label"])
        return Reviewed(str(row["path"]), int(row.get("frame") or 0), label=label, boxes=boxes)
    except (TypeError, ValueError) as error:
        raise CatalogError(
            f"row {number} of '{location}' is no label: {error}; frame is a whole number, boxes "
            "are JSON"
        ) from error
