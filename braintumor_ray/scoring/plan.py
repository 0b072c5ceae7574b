"""What there is to score: the catalog without what earlier generations have committed.

Of each scan the driver keeps its id and two hashes, 24 bytes; rows are read in parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.redaction import UriRedaction, redact_catalog
from braintumor_ray.catalog.schema import CATALOG_SCHEMA, completed, same_id
from braintumor_ray.dicomweb.query import is_dicomweb
from braintumor_ray.errors import CatalogError
from braintumor_ray.predict.results import (
    CATALOGS,
    ResultsFolder,
    current_row_files,
    superseded_rows,
)
from braintumor_ray.scoring.generation import Generation
from braintumor_ray.scoring.scans import (
    ROWS_PER_PART,
    Ids,
    Scans,
    Work,
    are_in,
    joined,
    keys_of,
    places_in,
    scans_in_files,
    scans_in_table,
)
from braintumor_ray.storage import open_filesystem, write_table
from braintumor_ray.types import Mask

Manifests = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        generation: the one that this run writes.
        work: catalog rows that must have a row in this generation when it is committed.
        resumed: how many of them an interrupted attempt has committed already.
        known: catalog rows that earlier generations have scored.
        supersedes: scan ids that stop being current, by the generation that holds their row.
        backlog: new scans that the limit leaves for later runs.
    """

    generation: Generation
    work: Work
    resumed: int
    known: int
    supersedes: dict[int, list[int]] = field(default_factory=dict)
    backlog: int = 0

    @property
    def remaining(self) -> int:
        """Scans still to be scored."""
        return self.work.num_rows - self.resumed


def make_plan(
    folder: ResultsFolder,
    catalog: Scans | pa.Table,
    manifests: Manifests,
    fingerprint: str,
    limit: int | None = None,
    *,
    retry_quarantined: bool = False,
    redaction: UriRedaction | None = None,
) -> Plan:
    """Compare a catalog with what is committed.

    Args:
        folder: the results.
        catalog: all scans of the source (`data.catalog.CATALOG_SCHEMA`).
        manifests: the folder's, oldest first.
        fingerprint: of the results folder.
        limit: at most so many new scans.
        retry_quarantined: score again those whose current row is quarantined; the newer row
            supersedes it.
        redaction: of a folder that keeps redacted catalogs only; the work itself is never redacted.

    Raises:
        CatalogError: a scan has the id of another, in the catalog or among those scored earlier.
    """
    scans = scans_in_table(catalog) if isinstance(catalog, pa.Table) else catalog
    newest = int(manifests[-1]["generation"]) if manifests else 0
    generation = Generation(folder, newest + 1, fingerprint)
    wanted = _not_committed(folder, scans, manifests, redaction)
    if retry_quarantined:
        wanted |= are_in(scans.ids, np.sort(quarantined_ids(folder, manifests)))
    known = scans.known + scans.num_rows - int(np.count_nonzero(wanted))
    done = np.sort(generation.committed_ids())
    carried = _carried(generation, done[~are_in(done, np.sort(scans.ids[wanted]))])
    new = int(np.count_nonzero(wanted))
    if limit is not None:
        committed = are_in(scans.ids, done)
        chosen = wanted & (committed | (np.cumsum(wanted & ~committed) <= limit))
        wanted = _whole_objects(scans, wanted, chosen)
    work = Work(scans, wanted, carried)
    supersedes = _superseded(generation, work, manifests, redaction)
    resumed = int(np.count_nonzero(are_in(work.ids, done)))
    backlog = new - int(np.count_nonzero(wanted))
    return Plan(generation, work, resumed, known, supersedes, backlog)


def write_work(plan: Plan, attempt: str, redaction: UriRedaction | None = None) -> list[str]:
    """Write the work as the generation's catalog; returns paths below the folder.

    Each attempt has its own files: those of an interrupted one are needed until this one is
    complete. A redacted catalog cannot be scored from: it replaces the other at the end.
    """
    paths: list[str] = []
    for rows in _rechunked(plan.work.parts()):
        path = f"{CATALOGS}/{plan.generation.name}/{attempt}-{len(paths):05d}.parquet"
        write_table(plan.generation.folder.at(path), redact_catalog(rows, redaction))
        paths.append(path)
    return paths


def _rechunked(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of about `ROWS_PER_PART`, at least one."""
    held: list[pa.Table] = []
    written = 0
    for part in parts:
        held.append(part)
        if sum(table.num_rows for table in held) >= ROWS_PER_PART:
            yield pa.concat_tables(held, promote_options="default")
            held, written = [], written + 1
    rest = pa.concat_tables(held, promote_options="default") if held else None
    if rest is not None and (rest.num_rows or not written):
        yield rest


def earlier_scans(folder: ResultsFolder, manifest: dict[str, Any]) -> Scans:
    """The catalog of a committed generation."""
    filesystem, base = open_filesystem(folder.location)
    paths = [f"{base}/{path}" for path in manifest["catalogs"]]
    return scans_in_files(folder.location, paths, filesystem, count=0)


def _not_committed(
    folder: ResultsFolder, scans: Scans, manifests: Manifests, redaction: UriRedaction | None
) -> Mask:
    """Which catalog rows are in no generation."""
    paths = _keys(scans, "path", redaction) if manifests else np.empty(0, np.int64)
    order = np.argsort(scans.ids, kind="stable")
    ids = scans.ids[order]
    _check_distinct(scans, ids)
    fresh = np.ones(len(ids), dtype=bool)
    for manifest in manifests if len(ids) else ():
        for part in earlier_scans(folder, manifest).parts(["scan_id", "path", "frame"]):
            part_ids = part["scan_id"].to_numpy()
            place = places_in(ids, part_ids)
            seen = ids[place] == part_ids
            rows = order[place[seen]]
            both = part.filter(pa.array(seen))
            other = np.flatnonzero(keys_of(both, "path") != paths[rows])
            if len(other):
                _clash(scans, int(rows[other[0]]), both["path"][int(other[0])].as_py(), redaction)
            fresh[rows] = False
    return fresh


def _whole_objects(scans: Scans, wanted: Mask, chosen: Mask) -> Mask:
    """What a limit chose, and the other frames of the last one if it is an object of a PACS.

    Objects of a PACS are known by their first frame and never looked at again.
    """
    if not chosen.any():
        return chosen
    last, start, uri = int(np.flatnonzero(chosen)[-1]), 0, None
    for part in scans.parts(["uri"]):
        stop = start + part.num_rows
        if last < stop:
            uri = part["uri"][last - start].as_py() if uri is None else uri
            same = pc.equal(part["uri"], uri).to_numpy()
            if not is_dicomweb(uri):
                break
            chosen[start:stop] |= wanted[start:stop] & same
            if not same[-1]:
                break
        start = stop
    return chosen


def _keys(rows: Scans | Work, name: str, redaction: UriRedaction | None) -> Ids:
    columns = None if redaction else [name, "frame"]
    parts = rows.parts(columns)
    return joined(keys_of(redact_catalog(part, redaction), name) for part in parts)


def _check_distinct(scans: Scans, sorted_ids: Ids) -> None:
    twice = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
    if len(twice):
        rows = np.flatnonzero(scans.ids == twice[0])
        raise same_id(*(_path_of(scans, int(row)) for row in rows[:2]))


def _clash(scans: Scans, row: int, then: str, redaction: UriRedaction | None) -> None:
    path = _path_of(scans, row)
    shown = redaction(path) if redaction else path
    raise CatalogError(
        f"'{shown}' has the scan id of '{then}', scored earlier: their hashes collide; "
        "rename one of them"
    )


def _path_of(scans: Scans, row: int) -> str:
    for part in scans.parts(["path"]):
        if row < part.num_rows:
            return str(part["path"][row].as_py())
        row -= part.num_rows
    raise IndexError(row)


def quarantined_ids(folder: ResultsFolder, manifests: Manifests) -> Ids:
    """Scans whose current row is quarantined."""
    superseded = superseded_rows(manifests)
    found = []
    for manifest in manifests:
        for table in folder.read_parquet(current_row_files(manifest), ["scan_id", "status"]):
            bad = table.filter(pc.equal(table["status"], "quarantined"))["scan_id"].to_numpy()
            found.append(np.setdiff1d(bad, superseded[int(manifest["generation"])]))
    return joined(found)


def _carried(generation: Generation, gone: Ids) -> pa.Table:
    """Scans that an interrupted attempt committed and that have since changed or gone."""
    if not len(gone):
        return CATALOG_SCHEMA.empty_table()
    parent = f"{CATALOGS}/{generation.name}"
    paths = [f"{parent}/{name}" for name in generation.folder.names(parent)]
    kept = [
        completed(table.filter(pc.is_in(table["scan_id"], value_set=pa.array(gone))))
        for table in generation.folder.read_parquet(paths)
    ]
    rows = pa.concat_tables(kept, promote_options="default")
    _, first = np.unique(rows["scan_id"].to_numpy(), return_index=True)
    return rows.take(pa.array(first))


def _superseded(
    generation: Generation, work: Work, manifests: Manifests, redaction: UriRedaction | None
) -> dict[int, list[int]]:
    """Rows of older versions of the work's scans, by generation; its own number included."""
    if not work.num_rows:
        return {}
    keys = np.sort(_keys(work, "uri", redaction))
    columns = ["scan_id", "uri", "frame"]
    suspects = {
        int(manifest["generation"]): pa.concat_tables(
            _with_keys(part, keys)
            for part in earlier_scans(generation.folder, manifest).parts(columns)
        )
        for manifest in manifests
        if manifest["catalogs"]
    }
    versions = _versions(work, keys, suspects, redaction)
    found = {
        number: [
            row["scan_id"] for row in rows.to_pylist() if (row["uri"], row["frame"]) in versions
        ]
        for number, rows in suspects.items()
    }
    found[generation.number] = [scan for ids in versions.values() for scan in ids[:-1]]
    return {number: sorted(ids) for number, ids in found.items() if ids}


def _with_keys(part: pa.Table, keys: Ids) -> pa.Table:
    """Rows whose URI and frame have one of the sorted keys."""
    return part.filter(pa.array(are_in(keys_of(part, "uri"), keys)))


def _versions(
    work: Work, keys: Ids, suspects: dict[int, pa.Table], redaction: UriRedaction | None
) -> dict[tuple[str, int], list[int]]:
    """(uri, frame) -> ids in the work, oldest first; of scans with more than one version.

    Of two versions of a file in one generation the later one, as written, is current.
    """
    values, counts = np.unique(keys, return_counts=True)
    earlier = (keys_of(table, "uri") for table in suspects.values())
    wanted = np.sort(np.concatenate([values[counts > 1], *earlier]))
    versions: dict[tuple[str, int], list[int]] = {}
    if not len(wanted):
        return versions
    for part in work.parts(None if redaction else ["scan_id", "uri", "frame"]):
        shown = redact_catalog(part, redaction)
        for row in _with_keys(shown, wanted).select(["scan_id", "uri", "frame"]).to_pylist():
            versions.setdefault((row["uri"], row["frame"]), []).append(row["scan_id"])
    return versions
