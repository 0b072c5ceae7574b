"""A CSV next to the images: which column is what, and where its files are.

It is read a row at a time, and again for each question to all of it, so that a table of millions
of scans is never in memory.
"""

import codecs
import csv
import io
import os
import posixpath
import re
import unicodedata
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import dropwhile, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from braintumor_ray.catalog.folders import clean_label
from braintumor_ray.catalog.listing import Listing, files_below, list_files
from braintumor_ray.decode.files import MARK
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.storage import is_local, is_uri, local_path, open_filesystem, spelled

if TYPE_CHECKING:
    from braintumor_ray.catalog.options import CatalogOptions
    from braintumor_ray.decode.types import VolumeOptions

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
_BLOCK = 2**20  # bytes
_LAST_FRAME = 2**31 - 1  # that a catalog can hold


Row = dict[str, Any]
Lines = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Sidecar:
    """A table of scans.

    Attributes:
        root: what its paths are below.
        extra: names of further columns.
        rows: reads it: in its order, paths below `root` (or absolute) and catalog columns.
    """

    root: str
    extra: list[str]
    rows: Callable[[], Iterator[tuple[str, Row]]]


@dataclass(frozen=True)
class Records:
    """A table as text.

    Attributes:
        columns: their stripped names.
        encoding: utf-8, utf-16 or cp1252.
        rows: reads it: as many cells in each row as there are columns.
    """

    columns: list[str]
    encoding: str
    rows: Callable[[], Iterator[list[str]]]


def read_sidecar(location: str, options: "CatalogOptions") -> Sidecar:
    """A CSV (or TSV) with a path column, and perhaps label, patient and frame columns.

    Paths are below the root, or absolute. Where none of them is, they may begin elsewhere (in the
    folder around the root, on another machine) as long as that is one place for all, or be names
    of files only, as some public tables have it; such a name must then be there once. A file that
    is not there keeps its row. Further columns are kept as strings.

    Raises:
        CatalogError: the table cannot be read, is empty, or a file name is ambiguous; also later,
            when rows are read.
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
    known = _Known(root, table.encoding, lambda: (path_of(cells) for cells in table.rows()))

    def path_of(cells: list[str]) -> str:
        return _without_mark(cells[path_column], options.volumes)

    def rows() -> Iterator[tuple[str, Row]]:
        for cells in table.rows():
            row = _row(cells, label, patient, frame)
            further = {name: _value(cells[i]) for name, i in zip(names, extra, strict=True)}
            yield known.where(path_of(cells)), row | further

    return Sidecar(root, names, rows)


def read_records(location: str) -> Records:
    """A table as people write it.

    UTF-8 with or without a mark, UTF-16 with one, else Windows-1252; any ends of lines; separated
    by comma, semicolon, tab or bar, whichever gives rows as long as the header (a first line
    `sep=;` decides). Spaces around names are no part of them. Blank lines are skipped.

    Raises:
        CatalogError: it cannot be read or has no rows; also when rows are read, where one has more
            cells than the header.
    """
    with _as_catalog_errors(location):
        encoding = _encoding(location)
        lines = partial(_lines, location, encoding)
        records = partial(_records, lines, *_delimiter(lines, location))
        records = partial(records, strict=_is_strict(records))
        first = list(islice(records(), 2))
    if len(first) < 2:
        raise CatalogError(f"table '{location}' has no rows")
    columns = [name.strip() for name in first[0]]

    def rows() -> Iterator[list[str]]:
        with _as_catalog_errors(location):
            for cells in islice(records(), 1, None):
                yield _fitted(cells, columns, location)

    return Records(columns, encoding, rows)


@contextmanager
def _as_catalog_errors(location: str) -> Iterator[None]:
    try:
        yield
    except (OSError, csv.Error) as error:
        raise CatalogError(f"table '{location}' cannot be read: {error}") from error


def _opened(location: str) -> Any:  # noqa: ANN401 - a file of Python's or of pyarrow's
    if is_local(location):
        return local_path(location).open("rb")
    filesystem, path = open_filesystem(location)
    return filesystem.open_input_stream(path, compression=None)


def _encoding(location: str) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _opened(location) as stream:
        data = stream.read(_BLOCK)
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        try:
            while data:
                decoder.decode(data)
                data = stream.read(_BLOCK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8"


def _lines(location: str, encoding: str) -> Iterator[str]:
    codec = "utf-8-sig" if encoding == "utf-8" else encoding
    with (
        _opened(location) as stream,
        io.TextIOWrapper(stream, codec, errors="replace", newline="") as text,
    ):
        for line in text:
            yield line.replace("\0", "")


def _delimiter(lines: Lines, location: str) -> tuple[str, bool]:
    """What separates cells, and whether the first line names it."""
    first = next((line for line in lines() if line.strip("\r\n")), "")
    told = re.fullmatch(r"\"?sep=(.)\"?[\r\n]+", first)
    if told:
        return told[1], True
    preferred = ("\t", ",", ";", "|") if location.lower().endswith(".tsv") else DELIMITERS
    return max(preferred, key=lambda delimiter: _fit(lines, delimiter)), False


def _fit(lines: Lines, delimiter: str) -> tuple[float, int]:
    """How well a delimiter explains a table: the share of rows as long as the header, columns."""
    try:
        records = filter(None, _reader(lines(), delimiter, strict=False))
        lengths = [len(record) for record in islice(records, _SAMPLE)]
    except csv.Error:
        return 0.0, 0
    if not lengths or lengths[0] < 2:
        return 0.0, 0
    return sum(length == lengths[0] for length in lengths) / len(lengths), lengths[0]


def _is_strict(records: Callable[..., Iterator[list[str]]]) -> bool:
    """Whether all of a table follows the rules of quotes; else they are taken as they come."""
    try:
        for _ in records(strict=True):
            pass
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise csv.Error("a quote is opened and never closed") from error
        return False
    return True


def _records(lines: Lines, delimiter: str, told: bool, *, strict: bool) -> Iterator[list[str]]:
    """All records with a cell that is not blank, after the line that names the delimiter."""
    own = dropwhile(lambda line: not line.strip("\r\n"), lines())
    for record in _reader(islice(own, int(told), None), delimiter, strict=strict):
        if any(cell.strip() for cell in record):
            yield record


def _reader(lines: Iterable[str], delimiter: str, *, strict: bool) -> Iterator[list[str]]:
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


def _without_mark(cell: str, volumes: "VolumeOptions") -> str:
    """A path without what worklists have of how its volume is cut; the catalog puts it there again.

    Raises:
        CatalogError: it is cut in another way than is asked for: the frames are other slices.
    """
    text = cell.rstrip()
    found = MARK.search(text)
    if found is None:
        return cell
    if found[0] != volumes.mark:
        raise CatalogError(
            f"'{text}' is of a volume that is cut in another way; give --plane {found[1]} "
            f"--volume {found[2]}"
        )
    return text[: found.start()]


def _value(cell: str) -> str | None:
    text = cell.strip()
    return None if text.lower() in MISSING else text


def _frame(text: str) -> int:
    found = re.fullmatch(r"(\d+)(\.0*)?", text.strip())  # pandas writes 2.0 where others are empty
    if found is None or int(found[1]) > _LAST_FRAME:
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


class _Known:
    """The files below a root, by all that a table may call them.

    Of each file 8 bytes are kept, a hash of its path, and its path where it is in decomposed
    Unicode. Only for a table whose paths all begin elsewhere are they in memory.
    """

    def __init__(self, root: str, encoding: str, cells: Callable[[], Iterator[str]]) -> None:
        self.root, self._encoding, self._cells = root, encoding, cells
        self.base = self._base(root)
        self._decomposed: dict[str, str] = {}
        hashes = np.sort(np.fromiter(self._hashes(), np.int64))
        self._exact = array("q", hashes.tobytes())

    def _hashes(self) -> Iterator[int]:
        with suppress(CatalogError):  # the table may name files elsewhere, or none that is there
            for file in files_below(self.root, Listing([])):
                composed = _composed(file.path)
                if composed != file.path:
                    first = self._decomposed.get(composed, file.path)
                    self._decomposed[composed] = min(first, file.path)
                yield hash(file.path)

    def where(self, cell: str) -> str:
        """Path below the root (or absolute) of the file that a cell names."""
        path = self._written(cell)
        return self._exactly(path) or self._moved.get(path, path)

    @cached_property
    def _moved(self) -> dict[str, str]:
        """Files by the paths of a table of which none is where it says."""
        paths = map(self._written, self._cells())
        if any(self._exactly(path) for path in paths):
            return {}
        return self._found_elsewhere([self._written(cell) for cell in self._cells()])

    @cached_property
    def _paths(self) -> list[str]:
        try:
            return [file.path for file in list_files(self.root).files]
        except CatalogError:
            return []

    def _is_there(self, path: str) -> bool:
        place = bisect_left(self._exact, hash(path))
        return place < len(self._exact) and self._exact[place] == hash(path)

    @staticmethod
    def _base(root: str) -> str:
        if is_local(root):
            return spelled(os.path.abspath(local_path(root)))
        return root.rstrip("/")

    def _written(self, cell: str) -> str:
        """A cell as a path, below the root where it names the root."""
        text = cell if self._is_there(cell) else cell.strip()
        if not text:
            raise CatalogError(
                f"a row without a path in the table for '{self.root}'; fill or remove it"
            )
        if self._is_there(text):
            return text
        if self._encoding == "cp1252":  # the name may be as little UTF-8 as the table
            same = spelled(os.fsdecode(text.encode("cp1252", "replace")))
            if self._is_there(same):
                return same
        if is_local(self.root) and (text.startswith("~") or text.startswith("file://")):
            text = str(local_path(text))
        uri = is_uri(text)
        text = text if uri else posixpath.normpath(text.replace("\\", "/"))
        for base in (self.base, os.path.realpath(self.base)):
            if text.startswith(f"{base.rstrip('/')}/"):
                return text[len(base.rstrip("/")) + 1 :]
        return text

    def _exactly(self, path: str) -> str | None:
        """The file of that path, also where one of the two is in decomposed Unicode."""
        if self._is_there(path):
            return path
        if (path.startswith("/") or path.startswith("../")) and is_local(self.root):
            there = os.path.isfile(local_path(posixpath.join(self.base, path)))
            return path if there else None
        composed = _composed(path)
        found = composed if self._is_there(composed) else None
        return self._decomposed.get(composed, found)

    def _found_elsewhere(self, paths: Sequence[str]) -> dict[str, str]:
        """Files by paths that begin elsewhere; without those not found."""
        nested = [path for path in paths if "/" in path]
        cut, added = self._common_start(nested)
        found = {path: self._named(path) for path in paths if "/" not in path}
        for path in nested:
            if path.startswith(cut):
                found[path] = self._exactly(added + path.removeprefix(cut))
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
            example = next(path for path in paths if self._is_there(best[0][0] + path))
            raise self._ambiguous(example, [f"{front}{example}" for front, _ in best])
        return "", best[0][0] if best else ""

    def _cuts(self, path: str) -> list[str]:
        """Starts without which a path is that of a file here, its own folder included."""
        parts = path.split("/")
        starts = ("/".join(parts[:n]) + "/" for n in range(1, len(parts) - 1))
        around = f"{self.base}/"
        allowed = (s for s in starts if _is_absolute(path) or around.endswith(f"/{s}"))
        return [start for start in allowed if self._exactly(path.removeprefix(start))]

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
        for path in self._paths:
            names[_composed(posixpath.basename(path))].append(path)
        return names


def _composed(path: str) -> str:
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or is_uri(path) or re.match(r"[A-Za-z]:/", path) is not None
