"""The catalog: one row per scan (file, or frame of a multi-frame file), as Parquet."""

import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa

from braintumor_ray.catalog.folders import folder_labels, official_split_of
from braintumor_ray.catalog.identity import patient_from_path
from braintumor_ray.catalog.listing import (
    FoundFile,
    list_files,
    root_of,
    stat_files,
    with_left_out,
)
from braintumor_ray.catalog.local_key import check_catalog, noted
from braintumor_ray.catalog.options import CatalogOptions, is_table
from braintumor_ray.catalog.pacs import PacsListing
from braintumor_ray.catalog.schema import (
    CATALOG_SCHEMA,
    check_ids,
    read_catalog,
    scan_id,
    with_further,
)
from braintumor_ray.catalog.tables import read_sidecar
from braintumor_ray.decode.decode import probe
from braintumor_ray.decode.sandbox import DecodeSandbox
from braintumor_ray.decode.sniff import sniff
from braintumor_ray.decode.types import DEFAULT_LIMITS, DecodeLimits, Probe, VolumeOptions
from braintumor_ray.dicomweb.query import is_dicomweb
from braintumor_ray.dicomweb.session import ANSWERS, ATTEMPTS
from braintumor_ray.errors import ServerError
from braintumor_ray.storage import open_filesystem
from braintumor_ray.types import Progress

HEAD_BYTES = 64 * 1024
_STEPS = (2**20, 16 * 2**20)  # read after the head where the header is longer
HEADER_ANYWHERE = ("tiff", "matlab")  # the header may be at the end: the whole file, or nothing
LONG_HEADERS = ("dicom", "jpeg", "png")  # what comes before the pixels has no limit
PROBE_WORKER = "braintumor_ray.catalog.build:probe_content"
_UNREAD = b"unread_tags"  # in a catalog's metadata: files ("") and keywords, counted


def load_catalog(
    source: str | Path, options: CatalogOptions | None = None, progress: Progress | None = None
) -> pa.Table:
    """The catalog of any SOURCE: a folder, a CSV, a catalog (.parquet) or a URI of one.

    Returns:
        `CATALOG_SCHEMA` and then further columns of the CSV as strings; sorted by path and frame.

    Raises:
        CatalogError: nothing there, a missing column, or two scans with the same id.
    """
    text = root_of(source)
    options = options or CatalogOptions()
    if text.endswith(".parquet"):
        table = read_catalog(text)
        check_catalog(text, table.schema, options.identity)
        return table
    if is_table(text):
        table = read_sidecar(text, options)
        paths, told = zip(*table.rows(), strict=True)
        files = stat_files(table.root, paths)
        return build_catalog(files, options, progress, told, table.extra)
    if is_dicomweb(text):
        pacs = PacsListing(text, options.identity, progress)
        table = joined(catalog_parts(pacs, options), options)
        return with_left_out(table, pacs.left_out())
    found = list_files(text)
    return with_left_out(build_catalog(found.files, options, progress), found)


def build_catalog(
    files: Sequence[FoundFile],
    options: CatalogOptions,
    progress: Progress | None = None,
    told: Sequence[dict[str, Any]] | None = None,
    extra: Sequence[str] = (),
) -> pa.Table:
    """Rows for files that were found; see `load_catalog`.

    Args:
        files: in the order of the table, if one names them.
        options: how the source is read.
        progress: called with (files done, files).
        told: what the table says of each.
        extra: names of its further columns.
    """
    probes = _probe_all(files, options, progress)
    # The parts of a DICOM object's path are UIDs, not names that people gave.
    labels = folder_labels(["" if file.unsized else file.path for file in files])
    rows: list[dict[str, Any]] = []
    unread: Counter[str] = Counter()
    for index, (file, found) in enumerate(zip(files, probes, strict=True)):
        label = {"label": found.tags.get("label") or labels[index]}
        rows += rows_of_file(file, found, options, label | (told[index] if told else {}))
        count_unread(found, unread)
    rows.sort(key=lambda row: (row["path"], row["frame"]))
    table = pa.Table.from_pylist(rows, schema=with_further(extra))
    return _complete(table, unread, options)


def catalog_parts(found: PacsListing, options: CatalogOptions) -> Iterator[pa.Table]:
    """The catalog of a DICOMweb source in parts, so that only one is in memory; see `joined`."""
    for files in found.chunks():
        yield build_catalog(files, options)


def joined(parts: Iterable[pa.Table], options: CatalogOptions) -> pa.Table:
    """One catalog of the parts of a source, sorted by path and frame."""
    tables = list(parts)
    unread: Counter[str] = Counter()
    for table in tables:
        unread.update(unread_of(table.schema))
    bare = [table.replace_schema_metadata(None) for table in tables]
    whole = pa.concat_tables([CATALOG_SCHEMA.empty_table(), *bare])
    return _complete(
        whole.sort_by([("path", "ascending"), ("frame", "ascending")]), unread, options
    )


def _complete(table: pa.Table, unread: Counter[str], options: CatalogOptions) -> pa.Table:
    """The catalog with what it remembers of its making."""
    check_ids(table)
    return noted(with_unread(table, unread), options.identity)


def count_unread(found: Probe, unread: Counter[str]) -> None:
    """Count a file ("") and the attributes of its header that could not be parsed, if any."""
    keywords = found.tags.get("unread", "").split()
    unread.update(["", *keywords] if keywords else [])


def with_unread(catalog: pa.Table, unread: Counter[str]) -> pa.Table:
    """The catalog, which remembers in its metadata what could not be parsed."""
    note = json.dumps(unread).encode()
    return catalog.replace_schema_metadata({**(catalog.schema.metadata or {}), _UNREAD: note})


def unread_of(schema: pa.Schema) -> Counter[str]:
    """What a catalog remembers of `count_unread`."""
    return Counter(json.loads((schema.metadata or {}).get(_UNREAD, b"{}")))


def unread_line(unread: Mapping[str, int]) -> str:
    """One line on header attributes that could not be parsed; empty where there are none."""
    counts = Counter(unread)
    files = counts.pop("", 0)
    if not files:
        return ""
    named = ", ".join(f"{keyword} {count}" for keyword, count in counts.most_common(5))
    return f"{files} files have attributes that could not be parsed, taken for absent: {named}"


def _probe_all(
    files: Sequence[FoundFile], options: CatalogOptions, progress: Progress | None
) -> Iterator[Probe]:
    if not options.probe_headers:
        yield from repeat(Probe(frames=1), len(files))
        return
    with HeaderReader(options.volumes) as reader, ThreadPoolExecutor(options.threads) as pool:
        for done, found in enumerate(pool.map(reader.probe_file, files), start=1):
            yield found
            if progress:
                progress(done, len(files))


class HeaderReader:
    """Reads headers for several threads, and no more of a file than its header needs.

    The head of a file is parsed here. What is behind it is parsed in a child process, which a
    hostile header may kill or stall: that costs only its own file.
    """

    def __init__(self, volumes: VolumeOptions, limits: DecodeLimits = DEFAULT_LIMITS) -> None:
        self._volumes, self._limits = volumes, limits
        self._sandbox: DecodeSandbox | None = None  # most catalogs never need one
        self._sandbox_turn, self._large_turn = threading.Lock(), threading.Lock()

    def __enter__(self) -> "HeaderReader":
        return self

    def __exit__(self, *error: object) -> None:
        if self._sandbox is not None:
            self._sandbox.close()

    def probe_file(self, file: FoundFile) -> Probe:
        """The header of one file, or the reason why there is none.

        Raises:
            ServerError: a server that is down was asked often enough. A row without its header
                would not give the frames.
        """
        if not file.unsized:
            return self._probe(file)
        for _ in range(ATTEMPTS):
            try:
                return self._probe(file)
            except OSError as error:
                cause = error
        raise ServerError(f"{cause}; run the same command again: what is finished is kept")

    def _probe(self, file: FoundFile) -> Probe:
        size = self._limits.max_bytes if file.unsized else file.size
        if size is None:
            return Probe(reason="file missing or unreadable")
        filesystem, path = open_filesystem(file.uri)
        try:
            with filesystem.open_input_file(path) as stream:
                head = stream.read(HEAD_BYTES)
                if size > HEAD_BYTES and sniff(head) in HEADER_ANYWHERE:
                    return self._probe_on(stream, size, Probe(format=sniff(head)))
                found = probe(head, volumes=self._volumes)
                if found.reason and size > HEAD_BYTES and found.format in LONG_HEADERS:
                    return self._probe_on(stream, size, found)
                return found
        except OSError as error:
            if file.unsized and not isinstance(error, ANSWERS):
                raise
            return Probe(reason="file missing or unreadable")

    def _probe_on(self, stream: Any, size: int, found: Probe) -> Probe:  # noqa: ANN401 - pyarrow
        """Read further, a little at first, until the header is whole."""
        for step in self._steps(size, found.format):
            # Large parts one at a time: memory must not grow with the number of threads.
            with self._large_turn if step > _STEPS[-1] else nullcontext():
                stream.seek(0)
                found = self._probe_apart(stream.read(step), found.format)
            if found.reason is None:
                return found
        most = self._limits.max_bytes
        if size > most:  # truer than what a part looks like
            return replace(found, reason=f"{size} bytes is over the limit of {most}")
        return found

    def _steps(self, size: int, name: str | None) -> list[int]:
        """How many first bytes to try, one after the other."""
        most = self._limits.max_bytes
        if name in HEADER_ANYWHERE:
            return [size] if size <= most else []
        last = min(size, most)
        return [*(step for step in _STEPS if step < last), last]

    def _probe_apart(self, data: bytes, name: str | None) -> Probe:
        with self._sandbox_turn:
            if self._sandbox is None:
                self._sandbox = DecodeSandbox(PROBE_WORKER)
            outcome = self._sandbox.run(data, self._volumes)
        if outcome.reason is not None:
            return Probe(format=name, reason=outcome.reason)
        found: Probe = outcome.value
        return found


def probe_content(data: bytes | None, volumes: VolumeOptions) -> Probe:
    """The worker of the catalog's child process; see `decode.decode.probe`."""
    return probe(data, volumes=volumes)


def rows_of_file(
    file: FoundFile, found: Probe, options: CatalogOptions, told: dict[str, Any]
) -> Iterable[dict[str, Any]]:
    """Catalog rows of one file, one for each frame.

    Args:
        file: as it was found.
        found: what its header says.
        options: how the source is read.
        told: what a table or the folders say of it, by column.
    """
    volumes = options.volumes if found.format == "nifti" else None
    mark = volumes.mark if volumes else ""
    path = file.path + mark
    base = _file_columns(file, found, options) | {
        "uri": file.uri + mark,
        "path": path,
        "volume_plane": volumes and volumes.plane,
        "volume_index": volumes and volumes.volume,
    }
    base |= told
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
        "official_split": official_split_of(file.path),
    }
