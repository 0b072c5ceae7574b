"""The catalog's contract: its columns, how a source is read, the id of a scan, the Parquet file."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.decode.files import VOLUME_FIELDS, with_volumes, without_volume
from braintumor_ray.errors import CatalogError
from braintumor_ray.storage import open_filesystem, write_table

CATALOG_SCHEMA = pa.schema(
    [
        pa.field("scan_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
        pa.field("format", pa.string()),
        pa.field("mode", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("modality", pa.string()),
        pa.field("plane", pa.string()),
        pa.field("sequence", pa.string()),
        pa.field("label", pa.string()),
        pa.field("official_split", pa.string()),
        pa.field("patient_key", pa.string()),
        pa.field("study_key", pa.string()),
        pa.field("series_key", pa.string()),
        pa.field("sop_key", pa.string()),
        *VOLUME_FIELDS,
    ]
)


HEADER_COLUMNS = ("modality", "plane", "sequence")
ADDED_LATER = (*HEADER_COLUMNS, *(field.name for field in VOLUME_FIELDS))  # not in older catalogs

_PATIENT_KEYS = ("patient_key", "study_key", "series_key")
PATIENT_COLUMNS = ("uri", *_PATIENT_KEYS)


def with_further(names: Iterable[str]) -> pa.Schema:
    """The columns of a catalog, and further ones of a table of scans, as strings."""
    return pa.schema([*CATALOG_SCHEMA, *(pa.field(name, pa.string()) for name in names)])


def scan_id(path: str, frame: int, size: int | None, mtime_us: int | None) -> int:
    """64-bit id of one version of one scan: BLAKE2b of relative path, frame, size and mtime.

    Changed content is a new version of the scan and gets another id.
    """
    text = f"{path}\0{frame}\0{size}\0{mtime_us}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def patients_of(scans: pa.Table) -> list[str]:
    """What shows which scans are of one patient: its key, else that of the study or the series.

    Where none is known it is the file: slices of one volume are as alike as scans can be. A scan
    without a key has that of another one of its study, series or file, so that they stay together.

    Args:
        scans: of a catalog or of results, with `PATIENT_COLUMNS`.
    """
    unknown = pa.scalar(None, pa.string())
    keys = [pc.if_else(pc.equal(scans[name], ""), unknown, scans[name]) for name in _PATIENT_KEYS]
    levels = [*keys, without_volume(scans["uri"])]
    for level in reversed(range(len(keys))):
        for finer in levels[level + 1 :]:
            levels[level] = _with_those_of_others(levels[level], finer)
    *keys, files = levels
    named = [
        pc.binary_join_element_wise(name, key, "=")
        for name, key in zip(_PATIENT_KEYS, keys, strict=True)
    ]
    found: list[str] = pc.coalesce(*named, files).to_pylist()
    return found


def _with_those_of_others(keys: pa.ChunkedArray, finer: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys; a missing one is the first among those of the scans that have the same finer key."""
    if not 0 < keys.null_count < len(keys):
        return keys
    pairs = zip(keys.to_pylist(), finer.to_pylist(), strict=True)
    there = sorted({(key, place) for key, place in pairs if None not in (key, place)}, reverse=True)
    known = {place: key for key, place in there}
    return pc.coalesce(keys, pa.array(map(known.get, finer.to_pylist()), pa.string()))


def check_ids(table: pa.Table) -> None:
    """Refuse a catalog in which two rows have the same scan id.

    Raises:
        CatalogError: names both paths.
    """
    ids = table["scan_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if not len(repeated):
        return
    pair = order[repeated[0] : repeated[0] + 2]
    raise same_id(*table["path"].take(pa.array(pair)).to_pylist())


def same_id(one: str, other: str) -> CatalogError:
    """What to raise where two paths of a catalog have the same scan id."""
    cause = "the path is listed twice" if one == other else "their hashes collide"
    return CatalogError(
        f"'{one}' and '{other}' have the same scan id: {cause}; list each file once, or rename one"
    )


def completed(rows: pa.Table) -> pa.Table:
    """Catalog rows with the columns that older catalogs lack."""
    for name in HEADER_COLUMNS:
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.string()))
    return with_volumes(rows)


def check_columns(source: str | Path, schema: pa.Schema) -> None:
    """Refuse a table that is no catalog.

    Raises:
        CatalogError: it lacks columns, other than those that older catalogs lack.
    """
    missing = {*CATALOG_SCHEMA.names} - {*schema.names} - {*ADDED_LATER}
    if missing:
        raise CatalogError(
            f"'{source}' is not a catalog: column '{sorted(missing)[0]}' is missing; make one with "
            "'braintumor-ray catalog SOURCE --output CATALOG.parquet'"
        )


def read_catalog(path: str | Path) -> pa.Table:
    """Read a catalog, a Parquet file or a folder of them.

    Raises:
        CatalogError: it cannot be read or lacks columns.
    """
    import pyarrow.parquet as pq

    filesystem, inner = open_filesystem(path)
    try:
        table = pq.read_table(inner, filesystem=filesystem)
    except (OSError, pa.ArrowInvalid) as error:
        raise CatalogError(f"catalog '{path}' cannot be read: {error}") from error
    check_columns(path, table.schema)
    return completed(table)


def write_catalog(table: pa.Table, path: str | Path) -> None:
    """Write a catalog as one Parquet file, whole or not at all."""
    write_table(path, table)
