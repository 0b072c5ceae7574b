"""The catalog: one row per scan (file, or frame of a multi-frame file), as Parquet."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from braintumor_ray.data.decode import DEFAULT_VOLUMES, Probe, VolumeOptions, probe
from braintumor_ray.data.identity import IdentityHash, patient_from_path
from braintumor_ray.data.listing import (
    FoundFile,
    label_of,
    list_files,
    official_split_of,
    stat_files,
)
from braintumor_ray.data.storage import open_filesystem
from braintumor_ray.data.tables import Sidecar, read_sidecar
from braintumor_ray.errors import CatalogError

HEAD_BYTES = 64 * 1024
Progress = Callable[[int, int], None]

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
    ]
)
HEADER_COLUMNS = ("modality", "plane", "sequence")  # older catalogs lack them


@dataclass(frozen=True)
class CatalogOptions:
    """How a source is read.

    Attributes:
        path_column, label_column, patient_column: columns of a CSV; None: by their usual names.
        root: the folder that a CSV's paths are below; None: the CSV's own.
        patient_pattern: finds a patient id in the relative path.
        identity: turns ids into keys.
        probe_headers: read each file's header for format, mode and size; without, every file
            counts as one frame.
        volumes: how a NIfTI volume becomes frames; path and URI say so where it is not the
            default, see `VolumeOptions.mark`.
        threads: files read at a time.
    """

    path_column: str | None = None
    label_column: str | None = None
    patient_column: str | None = None
    root: str | None = None
    patient_pattern: re.Pattern[str] | None = None
    identity: IdentityHash = field(default_factory=IdentityHash)
    probe_headers: bool = True
    volumes: VolumeOptions = DEFAULT_VOLUMES
    threads: int = 8


def load_catalog(
    source: str | Path, options: CatalogOptions | None = None, progress: Progress | None = None
) -> pa.Table:
    """The catalog of any SOURCE: a folder, a CSV, a catalog (.parquet) or a URI of one.

    Returns:
        `CATALOG_SCHEMA` and then further columns of the CSV as strings; sorted by path and frame.

    Raises:
        CatalogError: nothing there, a missing column, or two scans with the same id.
    """
    text = str(source).rstrip("/")
    options = options or CatalogOptions()
    if text.endswith(".parquet"):
        return read_catalog(text)
    if text.lower().endswith((".csv", ".tsv")):
        sidecar = read_sidecar(text, options)
        files = stat_files(sidecar.root, sidecar.paths)
    else:
        sidecar, files = None, list_files(text)
    return build_catalog(files, options, sidecar, progress)


def build_catalog(
    files: Sequence[FoundFile],
    options: CatalogOptions,
    sidecar: Sidecar | None = None,
    progress: Progress | None = None,
) -> pa.Table:
    """Rows for files that were found; see `load_catalog`."""
    probes = _probe_all(files, options, progress)
    rows: list[dict[str, Any]] = []
    for index, (file, found) in enumerate(zip(files, probes, strict=True)):
        rows += _rows(file, found, options, sidecar.rows[index] if sidecar else None)
    rows.sort(key=lambda row: (row["path"], row["frame"]))
    extra = [pa.field(name, pa.string()) for name in (sidecar.extra if sidecar else ())]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*CATALOG_SCHEMA, *extra]))
    check_ids(table)
    return table


def scan_id(path: str, frame: int, size: int | None, mtime_us: int | None) -> int:
    """64-bit id of one version of one scan: BLAKE2b of relative path, frame, size and mtime.

    Changed content is a new version of the scan and gets another id.
    """
    text = f"{path}\0{frame}\0{size}\0{mtime_us}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


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
    one, other = table["path"].take(pa.array(pair)).to_pylist()
    cause = "the path is listed twice" if one == other else "their hashes collide"
    raise CatalogError(
        f"'{one}' and '{other}' have the same scan id: {cause}; list each file once, or rename one"
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
    for name in HEADER_COLUMNS:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    missing = [name for name in CATALOG_SCHEMA.names if name not in table.column_names]
    if missing:
        raise CatalogError(
            f"'{path}' is not a catalog: column '{missing[0]}' is missing; make one with "
            "'braintumor-ray catalog SOURCE --output CATALOG.parquet'"
        )
    return table


def write_catalog(table: pa.Table, path: str | Path) -> None:
    """Write a catalog as one Parquet file, whole or not at all."""
    import io

    import pyarrow.parquet as pq

    from braintumor_ray.data.storage import write_atomically

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


def _probe_all(
    files: Sequence[FoundFile], options: CatalogOptions, progress: Progress | None
) -> Iterator[Probe]:
    if not options.probe_headers:
        yield from repeat(Probe(frames=1), len(files))
        return
    with ThreadPoolExecutor(options.threads) as pool:
        found_headers = pool.map(_probe_file, files, repeat(options.volumes))
        for done, found in enumerate(found_headers, start=1):
            yield found
            if progress:
                progress(done, len(files))


def _probe_file(file: FoundFile, volumes: VolumeOptions) -> Probe:
    """The header from the first bytes; from the whole file where they are not enough."""
    if file.size is None:
        return Probe(reason="file missing or unreadable")
    filesystem, path = open_filesystem(file.uri)
    try:
        with filesystem.open_input_file(path) as stream:
            found = probe(stream.read(HEAD_BYTES), volumes=volumes)
            if found.reason is not None and file.size > HEAD_BYTES:
                stream.seek(0)
                found = probe(stream.read(), volumes=volumes)
    except OSError:
        return Probe(reason="file missing or unreadable")
    return found


def _rows(
    file: FoundFile, found: Probe, options: CatalogOptions, extra: dict[str, Any] | None
) -> Iterable[dict[str, Any]]:
    marked = file if found.format != "nifti" else _mark(file, options.volumes)
    base = _file_columns(marked, found, options)
    base |= extra or {}
    patient = base.pop("patient", None) or patient_from_path(options.patient_pattern, file.path)
    base["patient_key"] = options.identity(patient or found.tags.get("patient"))
    for kind in ("study", "series", "sop"):
        base[f"{kind}_key"] = options.identity(found.tags.get(kind), kind)
    mtime_us = None if file.mtime is None else int(file.mtime.timestamp() * 1_000_000)
    only = base.pop("only_frame", None)
    every = range(max(found.frames, 1))  # unreadable: one row, quarantined when decoded
    for frame in every if only is None else (only,):
        yield {
            **base,
            "frame": frame,
            "scan_id": scan_id(marked.path, frame, file.size, mtime_us),
        }


def _mark(file: FoundFile, volumes: VolumeOptions) -> FoundFile:
    return replace(file, path=volumes.mark(file.path), uri=volumes.mark(file.uri))


def _file_columns(file: FoundFile, found: Probe, options: CatalogOptions) -> dict[str, Any]:
    readable = found.reason is None and options.probe_headers
    return {
        "uri": file.uri,
        "path": file.path,
        "size": file.size,
        "mtime": file.mtime,
        "format": found.format,
        "mode": found.mode,
        "height": found.height if readable else None,
        "width": found.width if readable else None,
        "modality": found.tags.get("modality"),
        "plane": found.tags.get("plane"),
        "sequence": found.tags.get("sequence"),
        "label": label_of(file.path),
        "official_split": official_split_of(file.path),
    }
