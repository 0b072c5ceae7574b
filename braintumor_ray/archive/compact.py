"""Many small files of a results folder into few large ones, at any moment and after any crash.

A compaction writes new files under new names and then replaces the manifest of its last
generation, in one atomic put, by one that replaces all of them. Until then nothing has changed
for readers; from then on they find the same rows in the new files. The other manifests are
removed next, and the old files when readers had time to leave them (`expire`).
"""

import math
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from braintumor_ray.archive.content import Content, content_of
from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.archive.records import (
    REGISTERED,
    Record,
    delete_unfinished,
    expire,
    finish,
    finish_or_abandon,
    identity_of,
    now,
    write_record,
)
from braintumor_ray.archive.segments import Segment, find_segments
from braintumor_ray.archive.sorting import (
    Survey,
    read_batches,
    sorted_parts,
    survey,
    write_rows,
)
from braintumor_ray.errors import BrainTumorError, ResultsError
from braintumor_ray.lease import Lease, lease_on
from braintumor_ray.predict.results import (
    CATALOGS,
    COMPACTIONS,
    HISTORY,
    MANIFESTS,
    ROWS,
    ResultsFolder,
    committed_runs,
    is_compacted,
    results_folder,
    row_files,
)
from braintumor_ray.scoring.generation import tidy_newest
from braintumor_ray.scoring.scans import Ids, are_in, joined
from braintumor_ray.storage import open_filesystem
from braintumor_ray.types import Mask, Progress

CATALOG_ROWS = 500_000  # of a file
PARQUET_SHRINKS = 0.9  # a target file may come out smaller than its share of the old bytes


@dataclass(frozen=True)
class Compaction:
    """What `compact` did.

    Attributes:
        compactions: how many manifests were written.
        generations: runs that they hold.
        rows, dropped: rows in the new files, and superseded rows that were left out.
        files_before, files_after: files of rows of the whole folder.
        expired, waiting, registered: replaced files that were deleted, that still have to wait,
            and that a registered table still lists.
    """

    compactions: int
    generations: int
    rows: int
    dropped: int
    files_before: int
    files_after: int
    expired: int = 0
    waiting: int = 0
    registered: int = 0


def compact(
    results: str, options: CompactOptions | None = None, progress: Progress | None = None
) -> Compaction:
    """Compact a results folder, and expire what an earlier compaction has replaced.

    Safe at any moment and after any crash; calling it again resumes.

    Args:
        results: the folder or URI.
        options: how.
        progress: called with files written and to write.

    Raises:
        ResultsError: nothing is committed, a live job holds the folder, a file cannot be read or
            written, or the new files do not hold the rows of the old ones.
    """
    options = options or CompactOptions()
    folder = results_folder(results)
    committed_runs(folder)
    with _as_results_errors(folder.location), lease_on(folder.location) as lease:
        newest = committed_runs(folder)[-1]
        tidy_newest(folder, str(newest.get("fingerprint", "none")))
        segments = find_segments(folder, options)
        finish_or_abandon(folder, [segment.name for segment in segments])
        for parent in (MANIFESTS, HISTORY, COMPACTIONS, REGISTERED):
            delete_unfinished(folder, parent)
        before = _count_files(folder)
        done = [_compact(folder, segment, options, lease, progress) for segment in segments]
        old = expire(folder, options.grace_hours if options.expire else math.inf)
        return Compaction(
            compactions=len(done),
            generations=sum(segment.last - segment.first + 1 for segment in segments),
            rows=sum(rows for rows, _ in done),
            dropped=sum(dropped for _, dropped in done),
            files_before=before,
            files_after=_count_files(folder),
            **old,
        )


def _compact(
    folder: ResultsFolder,
    segment: Segment,
    options: CompactOptions,
    lease: Lease,
    progress: Progress | None,
) -> tuple[int, int]:
    """Write, compare and commit one segment; rows written and dropped."""
    current, others = survey(folder, segment.sources)
    record = _record(segment)
    write_record(folder, record)
    for parent in (ROWS, CATALOGS):
        delete_unfinished(folder, f"{parent}/{segment.name}")
    writer = _Writer(folder, segment, options, progress)
    files = writer.write("part", current, is_current=True)
    kept = Survey() if options.drop_superseded else others
    old = writer.write("superseded", kept, is_current=False)
    catalogs = _write_catalogs(folder, segment, options.drop_superseded, [*files, *old])
    _compare(folder, segment, files, current.content)
    _compare(folder, segment, old, kept.content)
    manifest = _manifest(folder, segment, files, old, catalogs)
    folder.settle(manifest)
    lease.check()
    folder.write_manifest(manifest)
    lease.check()
    finish(folder, record, manifest)
    rows = current.content.rows + kept.content.rows
    return rows, others.content.rows - kept.content.rows


class _Writer:
    """Writes the files of a segment that an interrupted attempt has not written yet."""

    def __init__(
        self,
        folder: ResultsFolder,
        segment: Segment,
        options: CompactOptions,
        progress: Progress | None,
    ) -> None:
        self._folder, self._segment, self._options = folder, segment, options
        self._progress = progress
        self._there = {p: s for p, s in folder.sizes(f"{ROWS}/{segment.name}").items() if s}

    def write(self, stem: str, found: Survey, is_current: bool) -> list[dict[str, Any]]:
        """All files of the rows that a survey found, as a manifest lists them."""
        if not found.content.rows:
            return []
        share = found.content.rows / max(1, sum(self._rows_of_sources()))
        target = self._options.target_mb * 1e6 / PARQUET_SHRINKS
        by_memory = math.ceil(found.nbytes / (self._options.memory_mb * 1e6))
        bounds = found.bounds(max(by_memory, round(self._segment.nbytes * share / target)))
        parent = f"{ROWS}/{self._segment.name}"
        names = [f"{stem}-{number:05d}.parquet" for number in range(len(bounds) + 1)]
        missing = np.array([name not in self._there for name in names])
        files = {n: self._listed(f"{parent}/{names[n]}") for n in np.flatnonzero(~missing).tolist()}
        for number, rows in self._missing(is_current, bounds, missing):
            files[number] = self._write(f"{parent}/{names[number]}", rows)
            del rows  # not in memory while the next part is sorted
            if self._progress:
                self._progress(len(files), len(names))
        return [files[number] for number in sorted(files)]

    def _missing(
        self, is_current: bool, bounds: Sequence[str], missing: Mask
    ) -> Iterator[tuple[int, pa.Table]]:
        """The parts that are not there yet."""
        if missing.any():
            sources, memory = self._segment.sources, self._options.memory_mb * 1e6
            yield from sorted_parts(self._folder, sources, is_current, bounds, missing, memory)

    def _rows_of_sources(self) -> Iterator[int]:
        for manifest in self._segment.manifests:
            yield from (int(file["rows"]) for file in manifest["files"])

    def _write(self, path: str, rows: pa.Table) -> dict[str, Any]:
        size = write_rows(self._folder.at(path), rows)
        return {"path": path, "rows": rows.num_rows, "bytes": size}

    def _listed(self, path: str) -> dict[str, Any]:
        """A file that an interrupted attempt has written; its content is compared later."""
        filesystem, inside = open_filesystem(self._folder.at(path))
        rows = pq.read_metadata(inside, filesystem=filesystem).num_rows
        return {"path": path, "rows": rows, "bytes": self._there[path.rsplit("/", 1)[1]]}


def _compare(
    folder: ResultsFolder, segment: Segment, files: Sequence[dict[str, Any]], wanted: Content
) -> None:
    """Read the new files back: the same rows as in the old ones.

    Raises:
        ResultsError: they are not; the new files are deleted.
    """
    found = Content()
    for file in files:
        for rows in read_batches(folder, file["path"]):
            found += content_of(rows)
    if found != wanted:
        for file in files:
            folder.delete_file(file["path"])
        raise ResultsError(
            f"the compacted files of generations {segment.first} to {segment.last} of "
            f"'{folder.location}' hold {found}, the old ones {wanted} (rows and digest); they "
            "were deleted and nothing has changed: check the disk and run 'compact' again"
        )


def _write_catalogs(
    folder: ResultsFolder, segment: Segment, drop: bool, files: Sequence[dict[str, Any]]
) -> list[str]:
    """The catalogs in few files, each scan once; without those whose rows were dropped."""
    parent, paths = f"{CATALOGS}/{segment.name}", []
    for number, rows in enumerate(_rechunked(_catalog_rows(folder, segment, drop, files))):
        path = f"{parent}/part-{number:05d}.parquet"
        write_rows(folder.at(path), rows)
        paths.append(path)
    return paths


def _catalog_rows(
    folder: ResultsFolder, segment: Segment, drop: bool, files: Sequence[dict[str, Any]]
) -> Iterator[pa.Table]:
    sources = [path for manifest in segment.manifests for path in manifest["catalogs"]]
    left = np.unique(_ids(folder, [file["path"] for file in files])) if drop else None
    ids = _ids(folder, sources)
    wanted = np.zeros(len(ids), bool)
    _, last = np.unique(ids[::-1], return_index=True)  # a scan that was scored again: its newest
    wanted[len(ids) - 1 - last] = True
    if left is not None:
        wanted &= are_in(ids, left)
    start = 0
    for rows in folder.read_parquet(sources):
        yield rows.filter(pa.array(wanted[start : start + rows.num_rows]))
        start += rows.num_rows


def _ids(folder: ResultsFolder, paths: Sequence[str]) -> Ids:
    return joined(t["scan_id"].to_numpy() for t in folder.read_parquet(paths, ["scan_id"]))


def _rechunked(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(each.num_rows for each in held) >= CATALOG_ROWS:
            yield pa.concat_tables(held, promote_options="default")
            held = []
    if held:
        yield pa.concat_tables(held, promote_options="default")


def _record(segment: Segment) -> Record:
    retired = [path for m in segment.manifests for path in (*row_files(m), *m["catalogs"])]
    retired += [m["history"] for m in segment.manifests if is_compacted(m)]
    return {
        "name": segment.name,
        "replaces": [identity_of(manifest) for manifest in segment.manifests],
        "retired": retired,
        "committed_at": None,
    }


def _manifest(
    folder: ResultsFolder,
    segment: Segment,
    files: list[dict[str, Any]],
    old: list[dict[str, Any]],
    catalogs: list[str],
) -> dict[str, Any]:
    newest = segment.manifests[-1]
    history = f"{HISTORY}/{segment.name}.json"
    folder.write_json(_history(folder, segment), history)
    return {
        "generation": segment.last,
        "first_generation": segment.first,
        "compaction": segment.name,
        "run_id": uuid.uuid4().hex,
        "fingerprint": newest.get("fingerprint"),
        **{key: newest[key] for key in ("engine", "precision") if key in newest},
        "finished_at": now(),
        "catalogs": catalogs,
        "files": [*files, *old],
        "superseded_files": [file["path"] for file in old],
        "supersedes": _supersedes(segment),
        "retired": sorted({i for m in segment.manifests for i in m.get("retired", ())}),
        "history": history,
    }


def _history(folder: ResultsFolder, segment: Segment) -> list[dict[str, Any]]:
    """What is kept of each run: its manifest without lists of files and ids."""
    runs: list[dict[str, Any]] = []
    for manifest in segment.manifests:
        if is_compacted(manifest):
            runs += folder.read_json(manifest["history"])
            continue
        lists = ("files", "catalogs", "supersedes", "retired")
        run = {k: v for k, v in manifest.items() if k not in lists}
        runs.append(run | {"rows": sum(int(file["rows"]) for file in manifest["files"])})
    return runs


def _supersedes(segment: Segment) -> dict[str, list[int]]:
    """Rows of older generations that stop being current; those inside are distinguished by file."""
    found: dict[str, set[int]] = {}
    for manifest in segment.manifests:
        for generation, ids in manifest["supersedes"].items():
            if int(generation) < segment.first:
                found.setdefault(generation, set()).update(ids)
    return {generation: sorted(ids) for generation, ids in found.items()}


def _count_files(folder: ResultsFolder) -> int:
    return sum(len(row_files(manifest)) for manifest in folder.manifests())


@contextmanager
def _as_results_errors(results: str) -> Iterator[None]:
    try:
        yield
    except BrainTumorError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(
            f"compaction of '{results}' stopped: {error}; readers see every row as before: mend "
            f"the cause (rows wait in '{tempfile.gettempdir()}', TMPDIR) and run 'compact' again"
        ) from error
