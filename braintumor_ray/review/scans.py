"""The scans of a results folder as the page lists them: orders, filters, one scan's facts."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.labels import label_key
from braintumor_ray.catalog.reviewed import Key, Reviewed
from braintumor_ray.decode.files import without_volume
from braintumor_ray.errors import UsageError
from braintumor_ray.predict.results import ResultsFolder
from braintumor_ray.review.options import ORDERS, Order
from braintumor_ray.types import PREDICTION_SET, Ints
from braintumor_ray.worklist.worklist import load_rows, rank_scans

Filter = Literal["all", "open", "done", "positive", "unsure", "foreign", "differ"]
FILTERS: tuple[Filter, ...] = ("all", "open", "done", "positive", "unsure", "foreign", "differ")
_SLICES = 200  # of one series that the page shows
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class RankedScans:
    """Scored scans in order of urgency; a request names one by its id, 16 hexadecimal digits.

    Attributes:
        folder: of the results.
        rows: from `rank_scans`; further columns `disagreement` (NaN without a label) and `patient`
            (a number in place of the key).
    """

    folder: ResultsFolder
    rows: pa.Table

    @classmethod
    def load(cls, folder: ResultsFolder, source: pa.Table | None = None) -> "RankedScans":
        """Read a results folder.

        Args:
            folder: of the results.
            source: a catalog of where the files are now; None: where they were scored.

        Raises:
            ResultsError: no scan was scored.
            UsageError: no scan of the results is in the source.
        """
        found = load_rows(folder, ["series_key"])
        ranked = rank_scans(found.filter(pc.equal(found["status"], "ok")), folder, "urgency")
        if source is not None:
            ranked = _moved(ranked, source)
        ranked = ranked.append_column("disagreement", pa.array(_disagreement(ranked, folder)))
        patients = pc.dictionary_encode(ranked["patient_key"]).combine_chunks().indices
        ranked = ranked.append_column("patient", pc.add(patients, 1))
        return cls(folder, ranked.combine_chunks())

    @property
    def class_names(self) -> list[str]:
        """In the network's order."""
        return list(self.folder.meta["class_names"])

    @property
    def methods(self) -> list[str]:
        """Of the stored maps."""
        return list(self.folder.meta["cam_methods"])

    @cached_property
    def names(self) -> list[str]:
        """The name of each scan in requests: its id, which another run of the server knows, too."""
        return [f"{scan % 2**64:016x}" for scan in self.rows["scan_id"].to_pylist()]

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Rows by name."""
        return {name: row for row, name in enumerate(self.names)}

    @cached_property
    def keys(self) -> list[Key]:
        """Path and frame of each scan."""
        return list(zip(self._paths, self.rows["frame"].to_pylist(), strict=True))

    @cached_property
    def _paths(self) -> list[str]:
        return self.rows["path"].to_pylist()

    @cached_property
    def _orders(self) -> dict[str, Ints]:
        """Rows in each order; ties by urgency."""
        uncertain = self.rows["entropy"].to_numpy(), -self.rows["margin"].to_numpy()
        differs = np.nan_to_num(self.rows["disagreement"].to_numpy(), nan=-1.0)
        return {
            "urgency": np.arange(self.rows.num_rows),
            "uncertainty": np.lexsort((*(-values for values in uncertain[::-1]),)),
            "disagreement": np.argsort(-differs, kind="stable"),
        }

    def listed(self, order: Order, wanted: Filter, states: Mapping[Key, Reviewed]) -> Ints:
        """Rows in an order, those that pass a filter."""
        if order not in ORDERS or wanted not in FILTERS:
            known = f"{', '.join(ORDERS)}; {', '.join(FILTERS)}"
            raise UsageError(f"order '{order}', filter '{wanted}': one is unknown; use {known}")
        rows = self._orders[order]
        if wanted == "all":
            return rows
        kept = self._done(states) if wanted in ("open", "done") else self._fixed[wanted]
        return rows[~kept[rows] if wanted == "open" else kept[rows]]

    def _done(self, states: Mapping[Key, Reviewed]) -> np.ndarray[Any, Any]:
        """Which scans have a label or a verdict, bool (n,)."""
        done = self.reviewed(states)
        return np.fromiter((key in done for key in self.keys), bool, len(self.keys))

    def reviewed(self, states: Mapping[Key, Reviewed]) -> set[Key]:
        """Scans of these results with a label or a verdict; a file of labels may be of more."""
        done = {key for key, seen in states.items() if seen.label or seen.verdict}
        return done & self._known

    @cached_property
    def _known(self) -> frozenset[Key]:
        return frozenset(self.keys)

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        """Filters that no review changes, bool (n,) each."""
        unsure: Any = pc.greater(self.rows["entropy"], 0.5)
        if PREDICTION_SET in self.rows.column_names:
            unsure = pc.not_equal(pc.list_value_length(self.rows[PREDICTION_SET]), 1)
        return {
            "positive": self.rows["decision"].to_numpy(),
            "foreign": self.rows["out_of_domain"].to_numpy(),
            "unsure": unsure.to_numpy(),
            "differ": np.nan_to_num(self.rows["disagreement"].to_numpy(), nan=0.0) > 0.5,
        }

    def page(
        self, rows: Ints, start: int, count: int, states: Mapping[Key, Reviewed]
    ) -> list[dict[str, Any]]:
        """What the list shows of some rows."""
        return [self._short(int(row), states) for row in rows[start : start + count]]

    def _short(self, row: int, states: Mapping[Key, Reviewed]) -> dict[str, Any]:
        seen = states.get(self.keys[row])
        names = ("predicted_class", "urgency", "decision", "out_of_domain", "known_label")
        return {
            "scan": self.names[row],
            "path": self._paths[row],
            "frame": self.keys[row][1],
            **{name: self.rows[name][row].as_py() for name in names},
            "label": seen and seen.label,
            "verdict": seen and seen.verdict,
            "boxes": len(seen.boxes) if seen else 0,
            "note": bool(seen and seen.note),
        }

    def facts(self, row: int, states: Mapping[Key, Reviewed]) -> dict[str, Any]:
        """All that the page shows of one scan; no patient key among it."""
        values = self.rows.slice(row, 1).select(self._told).to_pylist()[0]
        seen = states.get(self.keys[row]) or Reviewed(*self.keys[row])
        probabilities = dict(zip(self.class_names, values.pop("probabilities"), strict=True))
        values["disagreement"] = _number(values["disagreement"])
        return values | {
            "scan": self.names[row],
            "probabilities": probabilities,
            "prediction_set": values.get(PREDICTION_SET),
            "review": asdict(seen),
            "series": [self.names[other] for other in self.series(row)],
        }

    @cached_property
    def _told(self) -> list[str]:
        names = ["path", "frame", "height", "width", "predicted_class", "probabilities", "urgency",
                 "entropy", "margin", "decision", "out_of_domain", "cam_class", "known_label",
                 "disagreement", "patient"]  # fmt: skip
        return names + [n for n in (PREDICTION_SET,) if n in self.rows.column_names]

    def series(self, row: int) -> list[int]:
        """Rows of the scan's series or volume in their order; itself alone where it has none."""
        group = self._series_of[row]
        rows = [row] if group is None else sorted(self._members[group], key=self._place)
        at = rows.index(row)
        first = max(0, min(at - _SLICES // 2, len(rows) - _SLICES))
        return rows[first : first + _SLICES]

    def _place(self, row: int) -> tuple[list[tuple[int, str]], int]:
        """By which slices are sorted: numbers in names by their values, then the frame."""
        path, frame = self.keys[row]
        parts = _DIGITS.split(path)  # text and digits in turn
        return [(int(part), part) if at % 2 else (0, part) for at, part in enumerate(parts)], frame

    @cached_property
    def _series_of(self) -> list[Any]:
        """What identifies the series of each scan: its key, else its file where that has frames."""
        keys = self.rows["series_key"].to_pylist()
        counts: dict[str, int] = defaultdict(int)
        for path in self._paths:
            counts[path] += 1
        pairs = zip(keys, self._paths, strict=True)
        return [key or (path if counts[path] > 1 else None) for key, path in pairs]

    @cached_property
    def _members(self) -> dict[Any, list[int]]:
        members: dict[Any, list[int]] = defaultdict(list)
        for row, group in enumerate(self._series_of):
            if group is not None:
                members[group].append(row)
        return members


def _number(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else value


def _disagreement(rows: pa.Table, folder: ResultsFolder) -> np.ndarray[Any, Any]:
    """1 minus the probability of the source's own label, NaN where it is none of the classes."""
    names = {label_key(name): index for index, name in enumerate(folder.meta["class_names"])}
    flat = pc.list_flatten(rows["probabilities"]).to_numpy().astype(np.float64)
    table = flat.reshape(rows.num_rows, len(folder.meta["class_names"]))
    labels = rows["known_label"].to_pylist()
    known = [names.get(label_key(label), -1) if label else -1 for label in labels]
    places = np.array(known, np.int64)
    return np.where(places < 0, np.nan, 1 - table[np.arange(len(table)), places]).round(6)


def _moved(rows: pa.Table, source: pa.Table) -> pa.Table:
    """Rows with the URIs of a source: of the same scan by its id, else of the file of its path.

    Results that were made without paths get those of the source: labels are kept by path.
    """
    columns = [source[name].to_pylist() for name in ("scan_id", "path", "uri")]
    by_id = {scan: (path, uri) for scan, path, uri in zip(*columns, strict=True)}
    # Files, not their frames: a source whose headers are not read has a row for each file.
    files = dict(
        zip(*(without_volume(source[n]).to_pylist() for n in ("path", "uri")), strict=True)
    )
    found, hits = [], 0
    facts = [rows["scan_id"], rows["path"], rows["uri"], without_volume(rows["path"])]
    for scan, path, uri, file in zip(*(column.to_pylist() for column in facts), strict=True):
        where = by_id.get(scan)
        if where is None and file in files:
            where = (path, files[file] + path.removeprefix(file))
        hits += where is not None
        found.append(where or (path, uri))
    if not hits:
        raise UsageError(
            f"none of the {rows.num_rows} scans is in --source; give the folder, table or catalog "
            "that was scored"
        )
    for position, name in enumerate(("path", "uri")):
        values = pa.array([pair[position] for pair in found], pa.string())
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows
