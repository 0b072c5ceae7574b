"""A CSV next to the images: which column is what, and where its files are."""

import codecs
import csv
import io
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from braintumor_ray.catalog.folders import clean_label
from braintumor_ray.catalog.listing import list_files
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.storage import is_local, is_uri, local_path, read_bytes, spelled

if TYPE_CHECKING:
    from braintumor_ray.catalog.options import CatalogOptions

PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "image_path", "image")
LABEL_NAMES = ("label", "class", "diagnosis", "category", "target", "class_name")
FRAME = "frame"  # a row is then this frame of its file only
PATIENT_NAMES = ("patient_id", "patient", "patientid", "pid", "subject", "subject_id")
# Columns that training, scoring and audits add to a catalog, and 'patient', which must not be
# kept; a further column of the same name is renamed.
RESERVED = {
    *("patient", "split", "class_name", "duplicate_group", "pixel_sha256", "status", "reason"),
    *("hashes", "image", "head", "only_frame", "predicted_class", "probabilities", "decision"),
    *("entropy", "out_of_domain", "cam_class", "bundle_fingerprint", "scored_at"),
    *("prediction_set", "label_of_source"),
}
# What R, pandas, BIDS and spreadsheets write where there is no value.
MISSING = {"", "na", "n/a", "nan", "null", "#n/a", "#na", "-nan", "#n/a n/a"}
DELIMITERS = (",", ";", "\t", "|")
_SAMPLE = 50  # records by which the delimiter is chosen


@dataclass(frozen=True)
class Sidecar:
    """A table's rows in order: paths below `root`, catalog columns, names of further ones."""

    root: str
    paths: list[str]
    rows: list[dict[str, Any]]
    extra: list[str]


@dataclass(frozen=True)
class Records:
    """A table as text: stripped names of its columns, and as many cells in each row."""

    columns: list[str]
    rows: list[list[str]]
    encoding: str


def read_sidecar(location: str, options: "CatalogOptions") -> Sidecar:
    """Read a CSV (or TSV) with a path column, and perhaps label, patient and frame columns.

    Paths are below the root, or absolute. Where none of them is, they may begin elsewhere (in the
    folder around the root, on another machine) as long as that is one place for all, or be names
    of files only, as some public tables have it; such a name must then be there once. A file that
    is not there keeps its row. Further columns are kept as strings.

    Raises:
        CatalogError: the table cannot be read, is empty, or a file name is ambiguous.
        UsageError: a named column is not in the table.
    """
    table = read_records(location)
    columns = table.columns
    path_column = _column(columns, options.path_column, PATH_NAMES, "--path-column", location)
    if path_column is None:
        raise UsageError(
            f"'{location}' has no path column among {', '.join(columns)}; name it by --path-column"
        )
    label = _column(columns, options.label_column, LABEL_NAMES, "--label-column", location)
    patient = _column(columns, options.patient_column, PATIENT_NAMES, "--patient-column", location)
    frame = _column(columns, None, (FRAME,), "", location)
    root = options.root or posixpath.dirname(location) or "."
    extra = [i for i in range(len(columns)) if i not in (path_column, label, patient, frame)]
    names = _safe_names([columns[i] for i in extra])
    rows = [
        _row(cells, label, patient, frame)
        | {name: _value(cells[i]) for name, i in zip(names, extra, strict=True)}
        for cells in table.rows
    ]
    paths = _resolve([cells[path_column] for cells in table.rows], root, table.encoding)
    return Sidecar(root, paths, rows, names)


def read_records(location: str) -> Records:
    """A table as people write it.

    UTF-8 with or without a mark, UTF-16 with one, else Windows-1252; any ends of lines; separated
    by comma, semicolon, tab or bar, whichever gives rows as long as the header (a first line
    `sep=;` decides). Spaces around names are no part of them. Blank lines are skipped.

    Raises:
        CatalogError: it cannot be read, has no rows, or a row has more cells than the header.
    """
    try:
        text, encoding = _decoded(read_bytes(location))
        records = _records(text, location)
    except (OSError, csv.Error) as error:
        raise CatalogError(f"table '{location}' cannot be read: {error}") from error
    if len(records) < 2:
        raise CatalogError(f"table '{location}' has no rows")
    columns = [name.strip() for name in records[0]]
    rows = [_fitted(cells, columns, location) for cells in records[1:]]
    return Records(columns, rows, encoding)


def _decoded(data: bytes) -> tuple[str, str]:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace"), "utf-16"
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace"), "cp1252"


def _records(text: str, location: str) -> list[list[str]]:
    text = text.replace("\0", "").lstrip("\r\n")
    told = re.match(r"\"?sep=(.)\"?[\r\n]+", text)
    if told:
        return _parsed(text[told.end() :], told[1])
    preferred = ("\t", ",", ";", "|") if location.lower().endswith(".tsv") else DELIMITERS
    return _parsed(text, max(preferred, key=lambda delimiter: _fit(text, delimiter)))


def _fit(text: str, delimiter: str) -> tuple[float, int]:
    """How well a delimiter explains a table: the share of rows as long as the header, columns."""
    lengths: list[int] = []
    try:
        for record in _reader(text, delimiter, strict=False):
            if record and len(lengths) < _SAMPLE:
                lengths.append(len(record))
    except csv.Error:
        return 0.0, 0
    if not lengths or lengths[0] < 2:
        return 0.0, 0
    return sum(length == lengths[0] for length in lengths) / len(lengths), lengths[0]


def _parsed(text: str, delimiter: str) -> list[list[str]]:
    try:
        records = list(_reader(text, delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise csv.Error("a quote is opened and never closed") from error
        records = list(_reader(text, delimiter, strict=False))
    return [record for record in records if any(cell.strip() for cell in record)]


def _reader(text: str, delimiter: str, *, strict: bool) -> Iterable[list[str]]:
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=strict)


def _fitted(cells: list[str], columns: list[str], location: str) -> list[str]:
    more = [cell for cell in cells[len(columns) :] if cell.strip()]
    if more:
        raise CatalogError(
            f"table '{location}': the row that begins '{cells[0]}' has {len(cells)} cells, the "
            f'header {len(columns)}; put cells that hold the separator in "double quotes"'
        )
    return cells[: len(columns)] + [""] * (len(columns) - len(cells))


def _column(
    columns: list[str], wanted: str | None, usual: tuple[str, ...], option: str, location: str
) -> int | None:
    if wanted is not None:
        for same in (str.strip, _plain):
            found = [i for i, name in enumerate(columns) if same(name) == same(wanted)]
            if found:
                return found[0]
        raise UsageError(f"{option} '{wanted}' is not in '{location}'; it has {', '.join(columns)}")
    plain = [_plain(name) for name in columns]
    return next((plain.index(name) for name in usual if name in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _row(
    cells: list[str], label: int | None, patient: int | None, frame: int | None
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if label is not None:
        text = _value(cells[label])
        row["label"] = None if text is None else clean_label(text)
    if patient is not None:
        row["patient"] = _value(cells[patient])
    if frame is not None and _value(cells[frame]) is not None:
        row["only_frame"] = _frame(cells[frame])
    return row


def _value(cell: str) -> str | None:
    text = cell.strip()
    return None if text.lower() in MISSING else text


def _frame(text: str) -> int:
    found = re.fullmatch(r"(\d+)(\.0*)?", text.strip())  # pandas writes 2.0 where others are empty
    if found is None:
        raise CatalogError(f"frame '{text}' is not a number from 0; leave it empty for all frames")
    return int(found[1])


def _safe_names(names: Sequence[str]) -> list[str]:
    """Names of further columns: none hides one of the catalog's own, or another."""
    from braintumor_ray.catalog.schema import CATALOG_SCHEMA

    taken = {*CATALOG_SCHEMA.names, *RESERVED}
    safe: list[str] = []
    for name in names:
        candidate = f"csv_{name}" if name in taken else name
        number = 2
        while candidate in taken or candidate in safe:
            candidate, number = f"{name}_{number}", number + 1
        safe.append(candidate)
    return safe


def _resolve(cells: Sequence[str], root: str, encoding: str) -> list[str]:
    """Paths below the root (or absolute) of the files that a table names."""
    known = _Known(root)
    paths = [known.written(cell, encoding) for cell in cells]
    found = [known.exactly(path) for path in paths]
    absent = [path for path, where in zip(paths, found, strict=True) if where is None]
    if len(absent) == len(paths):  # the table's paths begin elsewhere
        moved = known.moved(absent)
        found = [moved.get(path) for path in paths]
    return [where or path for path, where in zip(paths, found, strict=True)]


class _Known:
    """The files below a root, by all that a table may call them."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.base = self._base(root)
        try:
            self.paths = [file.path for file in list_files(root).files]
        except CatalogError:
            self.paths = []  # the table may name files elsewhere, or none that is there
        self._exact = set(self.paths)
        self._composed = {_composed(path): path for path in reversed(self.paths)}

    @staticmethod
    def _base(root: str) -> str:
        if is_local(root):
            return spelled(os.path.abspath(local_path(root)))
        return root.rstrip("/")

    def written(self, cell: str, encoding: str) -> str:
        """A cell as a path, below the root where it names the root."""
        text = cell if cell in self._exact else cell.strip()
        if not text:
            raise CatalogError(
                f"a row without a path in the table for '{self.root}'; fill or remove it"
            )
        if text in self._exact:
            return text
        if encoding == "cp1252":  # the name may be as little UTF-8 as the table
            same = spelled(os.fsdecode(text.encode("cp1252", "replace")))
            if same in self._exact:
                return same
        if is_local(self.root) and (text.startswith("~") or text.startswith("file://")):
            text = str(local_path(text))
        uri = is_uri(text)
        text = text if uri else posixpath.normpath(text.replace("\\", "/"))
        for base in (self.base, os.path.realpath(self.base)):
            if text.startswith(f"{base.rstrip('/')}/"):
                return text[len(base.rstrip("/")) + 1 :]
        return text

    def exactly(self, path: str) -> str | None:
        """The file of that path, also where one of the two is in decomposed Unicode."""
        if path in self._exact:
            return path
        if (path.startswith("/") or path.startswith("../")) and is_local(self.root):
            there = os.path.isfile(local_path(posixpath.join(self.base, path)))
            return path if there else None
        return self._composed.get(_composed(path))

    def moved(self, paths: Sequence[str]) -> dict[str, str]:
        """Files by the paths of a table whose paths begin elsewhere; without those not found."""
        nested = [path for path in paths if "/" in path]
        cut, added = self._common_start(nested)
        found = {path: self._named(path) for path in paths if "/" not in path}
        for path in nested:
            if path.startswith(cut):
                found[path] = self.exactly(added + path.removeprefix(cut))
        return {path: where for path, where in found.items() if where is not None}

    def _common_start(self, paths: Sequence[str]) -> tuple[str, str]:
        """What to take off the paths, and what to put in front: the same for all of them."""
        cuts = Counter(cut for path in paths for cut in self._cuts(path))
        if not cuts and len({posixpath.dirname(path) for path in paths}) == 1:
            folder = f"{posixpath.dirname(paths[0])}/"
            if _is_absolute(folder):
                return folder, ""  # a flat folder on another machine
        if cuts:
            return max(cuts, key=lambda cut: (cuts[cut], -len(cut))), ""
        added = Counter(front for path in paths for front in self._fronts(path))
        best = added.most_common(2)
        if len(best) == 2 and best[0][1] == best[1][1]:
            example = next(path for path in paths if best[0][0] + path in self._exact)
            raise self._ambiguous(example, [f"{front}{example}" for front, _ in best])
        return "", best[0][0] if best else ""

    def _cuts(self, path: str) -> list[str]:
        """Starts without which a path is that of a file here, its own folder included."""
        parts = path.split("/")
        starts = ("/".join(parts[:n]) + "/" for n in range(1, len(parts) - 1))
        around = f"{self.base}/"
        allowed = (s for s in starts if _is_absolute(path) or around.endswith(f"/{s}"))
        return [start for start in allowed if self.exactly(path.removeprefix(start))]

    def _fronts(self, path: str) -> list[str]:
        """Folders below which a path is that of a file here."""
        tail = f"/{_composed(path)}"
        same = self._by_name.get(_composed(posixpath.basename(path)), [])
        return [
            where[: len(where) - len(path)] for where in same if _composed(where).endswith(tail)
        ]

    def _named(self, name: str) -> str | None:
        same = self._by_name.get(_composed(name), [])
        if len(same) > 1:
            raise self._ambiguous(name, same)
        return same[0] if same else None

    def _ambiguous(self, path: str, same: Sequence[str]) -> CatalogError:
        return CatalogError(
            f"'{path}' is not below '{self.root}', and {len(same)} files there have its name "
            f"({same[0]}, {same[1]}); give whole paths or another --root"
        )

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            names[_composed(posixpath.basename(path))].append(path)
        return names


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or is_uri(path) or re.match(r"[A-Za-z]:/", path) is not None
