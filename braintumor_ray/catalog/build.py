"""The catalog: one row per scan (file, or frame of a multi-frame file), as Parquet."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa

from braintumor_ray.catalog.identity import patient_from_path
from braintumor_ray.catalog.listing import (
    FoundFile,
    label_of,
    list_files,
    official_split_of,
    stat_files,
)
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.schema import (
    CATALOG_SCHEMA,
    check_ids,
    read_catalog,
    scan_id,
)
from braintumor_ray.catalog.tables import Sidecar, read_sidecar
from braintumor_ray.decode.decode import probe
from braintumor_ray.decode.types import Probe, VolumeOptions
from braintumor_ray.storage import open_filesystem
from braintumor_ray.types import Progress

HEAD_BYTES = 64 * 1024


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
    volumes = options.volumes if found.format == "nifti" else None
    mark = volumes.mark if volumes else ""
    path = file.path + mark
    base = _file_columns(file, found, options) | {
        "uri": file.uri + mark,
        "path": path,
        "volume_plane": volumes and volumes.plane,
        "volume_index": volumes and volumes.volume,
    }
    base |= extra or {}
    patient = base.pop("patient", None) or patient_from_path(options.patient_pattern, file.path)
    base["patient_key"] = options.identity(patient or found.tags.get("patient"))
    for kind in ("study", "series", "sop"):
        base[f"{kind}_key"] = options.identity(found.tags.get(kind), kind)
    mtime_us = None if file.mtime is None else int(file.mtime.timestamp() * 1_000_000)
    only = base.pop("only_frame", None)
    every = range(max(found.frames, 1))  # unreadable: one row, quarantined when decoded
    for frame in every if only is None else (only,):
        yield {**base, "frame": frame, "scan_id": scan_id(path, frame, file.size, mtime_us)}


def _file_columns(file: FoundFile, found: Probe, options: CatalogOptions) -> dict[str, Any]:
    readable = found.reason is None and options.probe_headers
    return {
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
