"""A catalog made a part at a time: memory does not grow with the archive.

Files are listed, or named by a table, sorted by path in runs on disk, and merged. A batch of them
is opened and written as Parquet before the next one. What an earlier catalog knows of a file with
the same path, size and time is taken from there, and the file is not opened.
"""

import heapq
import json
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, islice, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from braintumor_ray.catalog.build import HeaderReader, count_unread, rows_of_file, with_unread
from braintumor_ray.catalog.folders import folder_labels, official_split_of
from braintumor_ray.catalog.labels import remarks_on
from braintumor_ray.catalog.listed import listed_files
from braintumor_ray.catalog.listing import (
    FoundFile,
    Listing,
    base_of,
    files_below,
    root_of,
    stat_files,
    uri_of,
    with_left_out,
)
from braintumor_ray.catalog.local_key import CHECK, HASHED, check_catalog
from braintumor_ray.catalog.options import CatalogOptions, StreamOptions, is_table
from braintumor_ray.catalog.schema import CATALOG_SCHEMA, check_columns, check_ids, with_further
from braintumor_ray.catalog.tables import Sidecar, read_sidecar
from braintumor_ray.decode.types import Probe
from braintumor_ray.dicomweb.query import is_dicomweb
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.storage import is_local, local_path, open_filesystem
from braintumor_ray.types import Progress

RUN = 50_000  # files sorted in memory at a time: 30 MB
READ = 512  # rows of a run that are in memory while runs are merged
TASK = 16  # files that a thread opens, one after the other
BATCH = 1_000  # files opened before their rows are written
ROW_GROUP = 20_000
MADE_WITH = b"made_with"  # in a catalog's metadata: options that its rows depend on
OPENED_ANEW = ("matlab",)  # formats whose label is in the file, not in its folder
_LISTED = pa.schema(
    [
        ("path", pa.string()),
        ("frame", pa.int64()),  # that a table names; -1: all of them
        ("size", pa.int64()),
        ("mtime", pa.timestamp("us", tz="UTC")),
        ("told", pa.string()),  # what a table says of it, as JSON
    ]
)
Listed = tuple[str, int, int | None, datetime | None, str | None]
_PATH_AND_FRAME = itemgetter(0, 1)
T = TypeVar("T")


@dataclass
class Streamed:
    """What a catalog holds.

    Attributes:
        scans: rows.
        opened: files that were opened.
        known: files that an earlier catalog knew.
        labels: rows of each label.
        left_out: entries of the source that are no scans.
        unread: see `build.count_unread`; of the opened files.
        remarks: what a user should know of the labels, a line each.
    """

    scans: int = 0
    opened: int = 0
    known: int = 0
    labels: Counter[str | None] = field(default_factory=Counter)
    left_out: Listing = field(default_factory=lambda: Listing([]))
    unread: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)


def can_stream(source: str, options: CatalogOptions) -> bool:
    """Whether a source is made into a catalog a part at a time; else `build.load_catalog` does it.

    Other ways to cut volumes are not: their mark in the paths changes the order. Neither is a
    DICOMweb source, see `pacs_parts`, nor a catalog that is made.
    """
    made = source.rstrip("/").lower().endswith(".parquet")
    return not (is_dicomweb(source) or made or options.volumes.mark)


def stream_catalog(
    source: str,
    output: str | Path,
    options: CatalogOptions,
    made: StreamOptions | None = None,
    progress: Progress | None = None,
) -> Streamed:
    """Write the catalog of a folder, URI or CSV: the rows of `build.load_catalog`, in its order.

    Args:
        source: for which `can_stream` holds.
        output: path or URI of the Parquet file; it appears whole or not at all.
        options: how the source is read.
        made: from which listing, and since which catalog.
        progress: called with (files done, files).

    Raises:
        CatalogError: nothing there, a listing or earlier catalog that cannot be used, or two scans
            with the same id; or the output cannot be written.
        UsageError: a source that is no folder, with one of the options of `made`.
    """
    made = made or StreamOptions()
    root = root_of(source)
    named = is_table(root)
    if not can_stream(source, options) or (named and made != StreamOptions()):
        raise UsageError(
            f"--listing and --since are for a folder or URI of files with the default volumes, "
            f"not for '{source}'"
        )
    with _written(output), tempfile.TemporaryDirectory(prefix="braintumor-catalog-") as work:
        found, extra = Listing([]), list[str]()
        if named:
            table = read_sidecar(root, options)
            root, extra = table.root, table.extra
            listed = _named_files(table)
        elif made.listing:
            listed = map(_listed, listed_files(made.listing, root, found))
        else:
            listed = map(_listed, files_below(root, found))
        schema, runs = with_further(extra), _Runs(Path(work), listed)
        found.require_some(root, runs.files)
        found.archives.sort()
        earlier = None if made.since is None else _Earlier(made.since, options)
        try:
            with _appearing(output) as path:
                with pq.ParquetWriter(
                    path, schema, compression="zstd", store_schema=False
                ) as writer:  # without the schema in its notes, notes may be added at the end
                    building = _Building(root, options, runs, earlier, writer, schema)
                    building.write(progress)
                    building.note(found)
                building.check_ids(path)
        finally:
            if earlier is not None:
                earlier.close()
        return building.made


def _listed(file: FoundFile) -> Listed:
    return file.path, -1, file.size, file.mtime, None


def _named_files(table: Sidecar) -> Iterator[Listed]:
    """The files that a table names, each row one, with what it says of them."""
    for rows in _chunks(table.rows(), BATCH):
        files = stat_files(table.root, [path for path, _ in rows])
        for file, (_, told) in zip(files, rows, strict=True):
            frame = told.get("only_frame", -1)
            yield file.path, frame, file.size, file.mtime, json.dumps(told)


class _Runs:
    """Files on disk in sorted runs, and the folders that they lie in.

    Attributes:
        files: how many.
        folders: of all of them.
    """

    def __init__(self, work: Path, files: Iterable[Listed]) -> None:
        self.files, self.folders = 0, set[str]()
        self._paths: list[Path] = []
        for run in _chunks(iter(files), RUN):
            run.sort(key=_PATH_AND_FRAME)
            self.folders.update(file[0].rpartition("/")[0] for file in run)
            self.files += len(run)
            self._paths.append(work / f"{len(self._paths)}.arrow")
            table = pa.table([list(values) for values in zip(*run, strict=True)], schema=_LISTED)
            with pa.ipc.new_file(self._paths[-1], _LISTED) as writer:
                writer.write_table(table, READ)

    def merged(self) -> Iterator[Listed]:
        """All of them, by path."""
        return heapq.merge(*map(self._read, self._paths), key=_PATH_AND_FRAME)

    @staticmethod
    def _read(path: Path) -> Iterator[Listed]:
        with pa.memory_map(str(path)) as stream:
            reader = pa.ipc.open_file(stream)
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


class _Earlier:
    """Rows of an earlier catalog, read in order.

    Attributes:
        check: identifies the key that hashed its ids; None: it has none.

    Raises:
        CatalogError: no catalog, one of another key, or one whose rows have another order.
    """

    def __init__(self, location: str, options: CatalogOptions) -> None:
        self._location = location
        filesystem, path = open_filesystem(location)
        try:
            self._file = pq.ParquetFile(filesystem.open_input_file(path))
        except (OSError, pa.ArrowException) as error:
            raise CatalogError(f"--since '{location}' cannot be read: {error}") from error
        schema = self._file.schema_arrow
        check_columns(location, schema)
        self.check = check_catalog(location, schema, options.identity)
        if (schema.metadata or {}).get(MADE_WITH) != _made_with(options):
            raise CatalogError(
                f"--since '{location}' was made with other options, or by an earlier version; make "
                "the catalog once without --since"
            )
        self._batches = self._file.iter_batches(ROW_GROUP, columns=CATALOG_SCHEMA.names)
        self._rows = CATALOG_SCHEMA.empty_table()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def until(self, path: str) -> pa.Table:
        """The rows that were not given yet, up to those of a path."""
        while not self._rows.num_rows or self._rows["path"][-1].as_py() <= path:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._rows = pa.concat_tables([self._rows, self._in_order(batch)])
        rows = self._rows
        count = pc.sum(pc.less_equal(rows["path"], path)).as_py() or 0
        self._rows = rows.slice(count).combine_chunks()
        return rows.slice(0, count)

    def _in_order(self, batch: pa.RecordBatch) -> pa.Table:
        table = pa.Table.from_batches([batch]).cast(CATALOG_SCHEMA)
        paths = table["path"].combine_chunks()
        before = self._rows["path"][-1].as_py() if self._rows.num_rows else ""
        ordered = pc.all(pc.less_equal(paths[:-1], paths[1:])).as_py() is not False
        if not ordered or paths[0].as_py() < before:
            raise CatalogError(
                f"--since '{self._location}' is not in the order of its paths; give the file as "
                "'catalog' has written it"
            )
        return table


class _Building:
    """Batch by batch from listed files to rows."""

    def __init__(
        self,
        root: str,
        options: CatalogOptions,
        runs: _Runs,
        earlier: _Earlier | None,
        writer: pq.ParquetWriter,
        schema: pa.Schema,
    ) -> None:
        self._root, self._base, self._options = root, base_of(root), options
        self._runs, self._earlier, self._writer, self._schema = runs, earlier, writer, schema
        folders = sorted(runs.folders)
        below = [f"{folder}/x" if folder else "x" for folder in folders]
        self._label = dict(zip(folders, folder_labels(below), strict=True))
        self._shown: set[tuple[str, str | None]] = set()  # folder, label: one for each pair
        self._ids: list[npt.NDArray[np.int64]] = []
        self._waiting: list[pa.Table] = []
        self._hashed = False
        self.made = Streamed()

    def write(self, progress: Progress | None) -> None:
        """Open what is not known, and write all rows."""
        done = 0
        with (
            HeaderReader(self._options.volumes) as reader,
            ThreadPoolExecutor(self._options.threads) as pool,
        ):
            for batch in _chunks(self._runs.merged(), BATCH):
                files = [self._file(listed) for listed in batch]
                known, files = self._known(files)
                probes = self._probes(reader, pool, files)
                told = [listed[-1] for listed in batch] if known is None else None
                opened = self._opened(files, probes, told)
                self._add(opened if known is None else _by_path(known, opened))
                done += len(batch)
                if progress:
                    progress(done, self._runs.files)
        self._flush()

    def _probes(
        self, reader: HeaderReader, pool: ThreadPoolExecutor, files: list[FoundFile]
    ) -> Iterable[Probe]:
        """Headers of files in their order; a task for each file would cost as much as the file."""
        if not self._options.probe_headers:
            return [Probe(frames=1)] * len(files)
        each = max(1, min(TASK, len(files) // self._options.threads))
        tasks = [files[start : start + each] for start in range(0, len(files), each)]
        done = pool.map(lambda task: [reader.probe_file(file) for file in task], tasks)
        return chain.from_iterable(done)

    def note(self, found: Listing) -> None:
        """Note in the file what is known of the whole."""
        made = self.made
        made.left_out = Listing([], found.left_out, found.archives)
        about = with_left_out(with_unread(CATALOG_SCHEMA.empty_table(), made.unread), found)
        notes = {**about.schema.metadata, MADE_WITH: _made_with(self._options)}
        if self._hashed and not self._options.identity.clear:
            notes[CHECK] = self._key_check().encode()
        self._writer.add_key_value_metadata({k.decode(): v.decode() for k, v in notes.items()})
        counts = Counter({k: n for k, n in made.labels.items() if k is not None})
        shown = sorted(self._shown, key=lambda pair: (pair[0], pair[1] or ""))
        paths = [f"{folder}/x" if folder else "x" for folder, _ in shown]
        made.remarks = remarks_on(counts, paths, [label for _, label in shown])

    def _key_check(self) -> str:
        check, earlier = self._options.identity.check, self._earlier
        if earlier is not None and earlier.check not in (None, check):
            raise CatalogError(
                "the ids of the catalog of --since were hashed with another key; give that key, or "
                "make the catalog once without --since"
            )
        return check

    def check_ids(self, path: Path) -> None:
        """Refuse two scans of the same id, as `schema.check_ids`.

        Args:
            path: of the written file.
        """
        ids = np.sort(np.concatenate(self._ids))
        if (ids[1:] == ids[:-1]).any():
            check_ids(pq.read_table(path, columns=["scan_id", "path"]))

    def _file(self, listed: Listed) -> FoundFile:
        path, _, size, mtime, _ = listed
        return FoundFile(path, uri_of(self._root, self._base, path), size, mtime)

    def _known(self, files: list[FoundFile]) -> tuple[pa.Table | None, list[FoundFile]]:
        """Rows of the files that the earlier catalog knows, and the files that it does not."""
        if self._earlier is None:
            return None, files
        rows = self._earlier.until(files[-1].path)
        names = ("path", "uri", "size", "mtime", "format", "height")
        found: dict[FoundFile, list[int]] = {}
        for index, values in enumerate(zip(*(rows[n].to_pylist() for n in names), strict=True)):
            *file, kind, height = values
            if kind not in (None, *OPENED_ANEW) and height is not None:
                found.setdefault(FoundFile(*file), []).append(index)
        taken = [index for file in files for index in found.get(file, ())]
        new = [file for file in files if file not in found]
        self.made.known += len(files) - len(new)
        return self._relabeled(rows.take(pa.array(taken, pa.int64()))), new

    def _relabeled(self, rows: pa.Table) -> pa.Table:
        """Known rows by the folders of today, which other files may have changed."""
        paths = rows["path"].to_pylist()
        told = {
            "label": [self._label[path.rpartition("/")[0]] for path in paths],
            "official_split": [official_split_of(path) for path in paths],
        }
        for name, values in told.items():
            place = CATALOG_SCHEMA.get_field_index(name)
            rows = rows.set_column(
                place, CATALOG_SCHEMA.field(name), [pa.array(values, pa.string())]
            )
        return rows

    def _opened(
        self, files: list[FoundFile], probes: Iterable[Probe], told: list[str | None] | None
    ) -> pa.Table:
        rows: list[dict[str, Any]] = []
        texts = told or repeat(None, len(files))
        for file, found, text in zip(files, probes, texts, strict=True):
            label = found.tags.get("label") or self._label[file.path.rpartition("/")[0]]
            said = {"label": label} | (json.loads(text) if text else {})
            rows += rows_of_file(file, found, self._options, said)
            count_unread(found, self.made.unread)
        self.made.opened += len(files)
        return pa.Table.from_pylist(rows, schema=self._schema)

    def _add(self, rows: pa.Table) -> None:
        made, labels = self.made, rows["label"].to_pylist()
        made.scans += rows.num_rows
        made.labels.update(labels)
        folders = (path.rpartition("/")[0] for path in rows["path"].to_pylist())
        self._shown.update(zip(folders, labels, strict=True))
        self._hashed |= any(rows[name].null_count < rows.num_rows for name in HASHED)
        self._ids.append(rows["scan_id"].to_numpy())
        self._waiting.append(rows)
        if sum(table.num_rows for table in self._waiting) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), ROW_GROUP)
            self._waiting = []


@contextmanager
def _written(output: str | Path) -> Iterator[None]:
    """A disk that is full, as one line; what is opened and listed has errors of its own."""
    try:
        yield
    except OSError as error:
        raise CatalogError(
            f"catalog '{output}' was not written: {error}; give another place, or free space there "
            f"and in '{tempfile.gettempdir()}' (TMPDIR), where files are sorted"
        ) from error


@contextmanager
def _appearing(output: str | Path) -> Iterator[Path]:
    """A local file to write, which is at `output` when the block has ended well."""
    location = str(output)
    local = is_local(location)
    target = local_path(location).absolute() if local else Path(tempfile.gettempdir(), "catalog")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f"{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield work
        if local:
            os.replace(work, target)
        else:
            _upload(work, location)
    finally:
        work.unlink(missing_ok=True)


def _upload(path: Path, location: str) -> None:
    filesystem, target = open_filesystem(location)
    with path.open("rb") as source, filesystem.open_output_stream(target) as stream:
        shutil.copyfileobj(source, stream, 2**20)


def _by_path(known: pa.Table, opened: pa.Table) -> pa.Table:
    rows = pa.concat_tables([known, opened])
    return rows.sort_by([("path", "ascending"), ("frame", "ascending")])


def _made_with(options: CatalogOptions) -> bytes:
    """What rows depend on, other than the files."""
    pattern = options.patient_pattern
    identity = options.identity
    settings = {
        "patient_pattern": pattern and pattern.pattern,
        "probe_headers": options.probe_headers,
        "clear_ids": identity.clear,
    }
    return json.dumps(settings, sort_keys=True).encode()


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk
