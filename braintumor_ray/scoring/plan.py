"""What there is to score: the catalog without what earlier generations have committed.

Of each scan the driver keeps its id and three hashes, 32 bytes; rows are read in parts.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
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
_PLACES = ("path", "uri")  # columns that show which file a scan is of
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScorePlan:
    """What a run has to do.

    Attributes:
        generation: the one that this run writes.
        work: catalog rows that must have a row in this generation when it is committed.
        resumed: how many of them an interrupted attempt has committed already.
        known: catalog rows that earlier generations have scored.
        supersedes: scan ids that stop being current, by the generation that holds their row.
        backlog: new scans that the limit leaves for later runs.
        unretired: earlier manifests without the retired ids that get a row again.
    """

    generation: Generation
    work: Work
    resumed: int
    known: int
    supersedes: dict[int, list[int]] = field(default_factory=dict)
    backlog: int = 0
    unretired: Manifests = ()

    @property
    def retired(self) -> list[int]:
        """Ids without a current row from now on: of older versions, not of scans scored again."""
        own = set(self.supersedes.get(self.generation.number, ()))
        again = set(self.work.ids.tolist()) - own if self.supersedes else set()
        return sorted(set().union(*self.supersedes.values()) - again)

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
) -> ScorePlan:
    """Compare a catalog with what is committed.

    Args:
        folder: the results.
        catalog: all scans of the source (`catalog.schema.CATALOG_SCHEMA`).
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
    wanted, elsewhere = _not_committed(folder, scans, manifests, redaction)
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
    supersedes = _superseded(generation, work, manifests, redaction, elsewhere)
    resumed = int(np.count_nonzero(are_in(work.ids, done)))
    backlog = new - int(np.count_nonzero(wanted))
    unretired = list(_unretired(work, manifests))
    return ScorePlan(generation, work, resumed, known, supersedes, backlog, unretired)


def write_work(plan: ScorePlan, attempt: str, redaction: UriRedaction | None = None) -> list[str]:
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


def write_manifest(plan: ScorePlan, manifest: dict[str, Any]) -> None:
    """Commit: from here on the generation counts.

    Plain readers leave out the retired ids of all manifests. So those of scans that get a row again
    go first: until the commit such readers still find the newer row of the file.
    """
    for each in (*plan.unretired, manifest):
        plan.generation.folder.write_manifest(each)


def _unretired(work: Work, manifests: Manifests) -> Iterator[dict[str, Any]]:
    ids = np.sort(work.ids)
    for manifest in manifests:
        retired = np.array(manifest.get("retired", ()), np.int64)
        again = are_in(retired, ids)
        if again.any():
            yield manifest | {"retired": retired[~again].tolist()}


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
) -> tuple[Mask, int]:
    """Which catalog rows have no current row, and how many have one with other URIs only."""
    names = _PLACES if manifests else ()
    keys = {name: _keys(scans, name, redaction) for name in names}
    order = np.argsort(scans.ids, kind="stable")
    ids = scans.ids[order]
    _check_distinct(scans, ids)
    fresh = np.ones(len(ids), dtype=bool)
    here = np.zeros(len(ids), dtype=bool)
    ended = np.zeros(len(ids), dtype=bool)
    example = None
    rows_ended = _EndedRows.of(manifests)
    for manifest in manifests if len(ids) else ():
        for part in earlier_scans(folder, manifest).parts(["scan_id", "path", "uri", "frame"]):
            part_ids = part["scan_id"].to_numpy()
            place = places_in(ids, part_ids)
            seen = ids[place] == part_ids
            rows = order[place[seen]]
            both = part.filter(pa.array(seen))
            ended[rows] = rows_ended.among(part_ids[seen], manifest)
            other = np.flatnonzero(keys_of(both, "path") != keys["path"][rows])
            if len(other):
                _clash(scans, int(rows[other[0]]), both["path"][int(other[0])].as_py(), redaction)
            fresh[rows] = False
            same_uri = keys_of(both, "uri") == keys["uri"][rows]
            here[rows[same_uri]] = True
            if example is None and not same_uri.all():
                example = both["uri"][int(np.argmin(same_uri))].as_py()
    elsewhere, known = int(np.count_nonzero(~fresh & ~here)), int(np.count_nonzero(~fresh))
    if 2 * elsewhere > known:
        logger.warning(
            "%d of %d known scans were scored below another root, such as '%s': the archive is "
            "taken to have moved; score another archive into another folder",
            elsewhere, known, example,
        )  # fmt: skip
    return fresh | _put_back(folder, scans, ended, manifests, rows_ended, redaction), elsewhere


@dataclass(frozen=True)
class _EndedRows:
    """Rows that are no longer current, by what all manifests tell.

    Attributes:
        superseded: sorted scan ids, by the generation that holds the row.
        retired: sorted scan ids that have no current row in any generation.
    """

    superseded: Mapping[int, Ids]
    retired: Ids

    @classmethod
    def of(cls, manifests: Manifests) -> "_EndedRows":
        retired = [scan for manifest in manifests for scan in manifest.get("retired", ())]
        return cls(superseded_rows(manifests), np.unique(np.array(retired, np.int64)))

    def among(self, ids: Ids, manifest: dict[str, Any]) -> Mask:
        """Whether the rows of scans in the generation of a manifest have ended."""
        superseded = self.superseded[int(manifest["generation"])]
        return are_in(ids, superseded) | are_in(ids, self.retired)


def _put_back(
    folder: ResultsFolder,
    scans: Scans,
    ended: Mask,
    manifests: Manifests,
    rows_ended: _EndedRows,
    redaction: UriRedaction | None,
) -> Mask:
    """Of scans whose rows have ended, those whose file was another one since and is back.

    Not those that have a current row as a scan of another root.
    """
    if not ended.any():
        return ended
    files = Work(scans, ended, CATALOG_SCHEMA.empty_table())
    sought = {name: np.unique(_keys(files, name, redaction, frame=False)) for name in _PLACES}
    current: set[tuple[Any, ...]] = set()
    for manifest in manifests:
        for part in earlier_scans(folder, manifest).parts(_VERSION_COLUMNS):
            near = _among(part, sought)
            near = near.filter(pa.array(~rows_ended.among(near["scan_id"].to_numpy(), manifest)))
            current.update(key for row in near.to_pylist() for key in _scan_keys(row))
    shown = redact_catalog(files.read(), redaction)
    back = np.zeros(scans.num_rows, dtype=bool)
    back[ended] = [current.isdisjoint(_scan_keys(row)) for row in shown.to_pylist()]
    return back


def _scan_keys(row: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(name, row[name], row["frame"], *_version_of(row)) for name in _PLACES]


def _whole_objects(scans: Scans, wanted: Mask, chosen: Mask) -> Mask:
    """What a limit chose, and of objects of a PACS all other frames.

    They are known by their first frame and never looked at again. A limit may cut the last of them,
    and an attempt that was interrupted may have committed some frames of any.
    """
    parts = Work(scans, chosen, CATALOG_SCHEMA.empty_table()).parts(["uri"])
    begun = {uri for part in parts for uri in part["uri"].to_pylist() if is_dicomweb(uri)}
    if not begun:
        return chosen
    uris = pa.array(begun, pa.string())
    same = [pc.is_in(part["uri"], value_set=uris).to_numpy() for part in scans.parts(["uri"])]
    return chosen | (wanted & np.concatenate(same))


def _keys(
    rows: Scans | Work, name: str, redaction: UriRedaction | None, *, frame: bool = True
) -> Ids:
    columns = None if redaction else [name, "frame"]
    parts = rows.parts(columns)
    return joined(keys_of(redact_catalog(part, redaction), name, frame=frame) for part in parts)


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
    return rows.take(pa.array(np.sort(first)))  # as written: of two versions the later is current


@dataclass
class _FileVersions:
    """The newest version of a file in the work, as written.

    Attributes:
        version: its size and time.
        scans: scan id by frame.
        replaced: ids of its older versions in the same work.
        here: whether earlier rows have its URI; None: it has no earlier rows.
    """

    version: tuple[Any, Any]
    scans: dict[int, int] = field(default_factory=dict)
    replaced: list[int] = field(default_factory=list)
    here: bool | None = None

    def add(self, row: dict[str, Any]) -> None:
        """A row of the work, after those that were written before it."""
        if (version := _version_of(row)) != self.version:
            self.replaced += self.scans.values()
            self.version, self.scans = version, {}
        if row["frame"] in self.scans:
            self.replaced.append(self.scans[row["frame"]])
        self.scans[row["frame"]] = row["scan_id"]

    def supersedes(self, row: dict[str, Any]) -> bool:
        """Whether an earlier row ends: the file is another now, or the scan was scored again.

        A new version may have fewer frames than the old one: all of the old ones end.
        """
        return _version_of(row) != self.version or row["frame"] in self.scans


def _version_of(row: dict[str, Any]) -> tuple[Any, Any]:
    return row.get("size"), row.get("mtime")


_VERSION_COLUMNS = ["scan_id", "uri", "path", "frame", "size", "mtime"]


def _superseded(
    generation: Generation,
    work: Work,
    manifests: Manifests,
    redaction: UriRedaction | None,
    same_elsewhere: int,
) -> dict[int, list[int]]:
    """Rows of older versions of the work's files, by generation; its own number included.

    A file is the same by its path below the root, as in scan ids, wherever the root is; or by its
    URI, where the root is now another folder of the same tree.
    """
    if not work.num_rows:
        return {}
    names = _PLACES if manifests else ()
    sought = {name: np.unique(_keys(work, name, redaction, frame=False)) for name in names}
    suspects = {
        int(manifest["generation"]): pa.concat_tables(
            _among(part, sought)
            for part in earlier_scans(generation.folder, manifest).parts(_VERSION_COLUMNS)
        )
        for manifest in manifests
        if manifest["catalogs"]
    }
    files = _files(work, suspects, redaction)
    by_uri = {uri: file for (_, uri), file in files.items()}
    by_path = {path: file for (path, _), file in files.items()}
    found: dict[int, list[int]] = {}
    for number, rows in suspects.items():
        for row in rows.to_pylist():
            here, same_path = by_uri.get(row["uri"]), by_path.get(row["path"])
            if same_path is not None:
                same_path.here = bool(same_path.here) or here is same_path
            if any(file and file.supersedes(row) for file in (here, same_path)):
                found.setdefault(number, []).append(row["scan_id"])
    _check_archive(files, same_elsewhere)
    found[generation.number] = [scan for file in files.values() for scan in file.replaced]
    return {number: sorted(ids) for number, ids in found.items() if ids}


def _among(part: pa.Table, sought: dict[str, Ids]) -> pa.Table:
    """Rows that have one of the sorted keys."""
    chosen = np.zeros(part.num_rows, bool)
    for name, keys in sought.items():
        chosen |= are_in(keys_of(part, name, frame=False), keys)
    return part.filter(pa.array(chosen))


def _files(
    work: Work, suspects: dict[int, pa.Table], redaction: UriRedaction | None
) -> dict[tuple[str, str], _FileVersions]:
    """By (path, URI): those of the work that have earlier rows, or may have two versions in it."""
    values, counts = np.unique(_keys(work, "path", redaction), return_counts=True)
    twice = values[counts > 1]
    sought = {
        name: np.unique(joined(keys_of(t, name, frame=False) for t in suspects.values()))
        for name in ("path", "uri")
    }
    carried = redact_catalog(work.carried, redaction)
    sought["path"] = np.union1d(sought["path"], keys_of(carried, "path", frame=False))
    files: dict[tuple[str, str], _FileVersions] = {}
    if not any(map(len, (twice, *sought.values()))):
        return files
    for part in work.parts(None if redaction else _VERSION_COLUMNS):
        shown = redact_catalog(part, redaction)
        if len(twice):
            repeated = shown.filter(pa.array(are_in(keys_of(shown, "path"), twice)))
            sought["path"] = np.union1d(sought["path"], keys_of(repeated, "path", frame=False))
        for row in _among(shown, sought).to_pylist():
            key = row["path"], row["uri"]
            files.setdefault(key, _FileVersions(_version_of(row))).add(row)
    return files


def _check_archive(files: dict[tuple[str, str], _FileVersions], same_elsewhere: int) -> None:
    """Two archives may use the same paths; one that has moved still has most of its files."""
    elsewhere = {uri: file for (_, uri), file in files.items() if file.here is False}
    others = sum(len(file.scans) for file in elsewhere.values())
    if others > same_elsewhere:
        raise CatalogError(
            f"{others} scans, such as '{next(iter(elsewhere))}', have the paths of scans that were "
            f"scored below another root, with other sizes or times; only {same_elsewhere} scans "
            "are the same: score another archive into another folder"
        )
