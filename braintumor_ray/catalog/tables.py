"""A CSV beside the images: which column is what, and where its files are."""

import posixpath
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from braintumor_ray.catalog.listing import list_files
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.storage import open_filesystem

if TYPE_CHECKING:
    from braintumor_ray.catalog.options import CatalogOptions

PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "image_path", "image")
LABEL_NAMES = ("label", "class", "diagnosis", "category", "target")
FRAME = "frame"  # a row is then this frame of its file only
PATIENT_NAMES = ("patient_id", "patient", "patientid", "pid", "subject", "subject_id")


@dataclass(frozen=True)
class Sidecar:
    """A table's rows in order: paths below `root`, catalog columns, names of further ones."""

    root: str
    paths: list[str]
    rows: list[dict[str, Any]]
    extra: list[str]


def read_sidecar(location: str, options: "CatalogOptions") -> Sidecar:
    """Read a CSV (or TSV) with a path column, and perhaps label, patient and frame columns.

    A path that is not below the root is looked for by its file name, as some public tables name
    files only; it must then be there once. Further columns are kept as strings.

    Raises:
        CatalogError: the table cannot be read, is empty, or a file name is ambiguous.
        UsageError: a named column is not in the table.
    """
    table = _read_csv(location)
    columns = table.column_names
    path_column = _column(columns, options.path_column, PATH_NAMES, "--path-column", location)
    if path_column is None:
        raise UsageError(
            f"'{location}' has no path column among {', '.join(columns)}; name it by --path-column"
        )
    label = _column(columns, options.label_column, LABEL_NAMES, "--label-column", location)
    patient = _column(columns, options.patient_column, PATIENT_NAMES, "--patient-column", location)
    root = options.root or posixpath.dirname(location) or "."
    named = {path_column, label, patient, FRAME}
    extra = [name for name in columns if name not in named]
    paths = _resolve(table[path_column].to_pylist(), root)
    rows = [_row(raw, label, patient, extra) for raw in table.to_pylist()]
    return Sidecar(root, paths, rows, [_safe(name) for name in extra])


def _read_csv(location: str) -> pa.Table:
    from pyarrow import csv

    filesystem, path = open_filesystem(location)
    try:
        with filesystem.open_input_stream(path) as stream:
            text = stream.read()
        header = text.split(b"\n", 1)[0].decode("utf-8-sig").strip()
        delimiter = "\t" if location.lower().endswith(".tsv") else ","
        names = [name.strip().strip('"') for name in header.split(delimiter)]
        table = csv.read_csv(
            pa.BufferReader(text),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True
            ),
        )
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise CatalogError(f"table '{location}' cannot be read: {error}") from error
    if not table.num_rows:
        raise CatalogError(f"table '{location}' has no rows")
    return table


def _column(
    columns: list[str], wanted: str | None, usual: tuple[str, ...], option: str, location: str
) -> str | None:
    if wanted is not None:
        if wanted not in columns:
            raise UsageError(
                f"{option} '{wanted}' is not in '{location}'; it has {', '.join(columns)}"
            )
        return wanted
    by_lower = {name.lower().replace(" ", "_"): name for name in reversed(columns)}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _resolve(paths: list[str | None], root: str) -> list[str]:
    known = {file.path for file in list_files(root)}
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in sorted(known):
        by_name[posixpath.basename(path)].append(path)
    return [_find(path, known, by_name, root) for path in paths]


def _find(path: str | None, known: set[str], by_name: dict[str, list[str]], root: str) -> str:
    if not path:
        raise CatalogError(f"a row without a path in the table for '{root}'; fill or remove it")
    path = posixpath.normpath(path.strip().replace("\\", "/"))
    candidates = by_name.get(posixpath.basename(path), [])
    if path in known or not candidates:
        return path  # not there at all: its row will say so
    if len(candidates) > 1:
        raise CatalogError(
            f"'{path}' is not below '{root}', and {len(candidates)} files there have its name "
            f"({candidates[0]}, {candidates[1]}); give whole paths or another --root"
        )
    return candidates[0]


def _row(
    raw: dict[str, Any], label: str | None, patient: str | None, extra: list[str]
) -> dict[str, Any]:
    row = {_safe(name): raw[name] for name in extra}
    if label is not None:
        row["label"] = raw[label] or None
    if patient is not None:
        row["patient"] = raw[patient]
    if raw.get(FRAME) is not None:
        row["only_frame"] = _frame(raw[FRAME])
    return row


def _frame(text: str) -> int:
    if not text.strip().isdigit():
        raise CatalogError(f"frame '{text}' is not a number from 0; leave it empty for all frames")
    return int(text)


def _safe(name: str) -> str:
    """A further column must not hide one of the catalog's own."""
    from braintumor_ray.catalog.schema import CATALOG_SCHEMA

    taken = name in CATALOG_SCHEMA.names or name in ("patient", "split")
    return f"csv_{name}" if taken else name
