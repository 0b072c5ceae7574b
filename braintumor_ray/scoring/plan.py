"""What there is to score: the catalog less what earlier generations have committed."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from braintumor_ray.data.identity import UriRedaction
from braintumor_ray.data.storage import open_filesystem, write_atomically
from braintumor_ray.errors import CatalogError
from braintumor_ray.predict.results import (
    CATALOGS,
    CHECKPOINTS,
    ROWS,
    ResultsFolder,
    current_rows,
)
from braintumor_ray.scoring.redaction import redact_catalog

ROWS_PER_CATALOG_FILE = 1_000_000
PENDING = ".pending.parquet"


@dataclass(frozen=True)
class Generation:
    """One run's share of a results folder.

    Attributes:
        folder: the results.
        number: 1 upwards; the generation is committed when its manifest exists.
        fingerprint: names the checkpoints, so that another model never inherits "done".
    """

    folder: ResultsFolder
    number: int
    fingerprint: str

    @property
    def name(self) -> str:
        """The number as it stands in file names."""
        return f"{self.number:06d}"

    @property
    def rows(self) -> str:
        """Where its predictions are, below the folder."""
        return f"{ROWS}/{self.name}"

    @property
    def checkpoints(self) -> str:
        """Where Ray Data notes what is done, below the folder."""
        return f"{CHECKPOINTS}/{self.fingerprint}/{self.name}"

    def committed_files(self) -> dict[str, str]:
        """Data files with a committed checkpoint: file name -> checkpoint name.

        Ray names a data file after its checkpoint, with a suffix.
        """
        prefixes = {
            name.removesuffix(".parquet"): name
            for name in self.folder.names(self.checkpoints)
            if name.endswith(".parquet") and not name.endswith(PENDING)
        }
        found = {}
        for name in self.folder.names(self.rows):
            prefix = _prefix_in(name, prefixes)
            if prefix is not None:
                found[name] = prefixes[prefix]
        return found

    def committed_ids(self) -> npt.NDArray[np.int64]:
        """Scan ids in committed files of this generation, in no order."""
        paths = [f"{self.rows}/{name}" for name in self.committed_files()]
        return _ids(self.folder.read_parquet(paths, ["scan_id"]))

    def reconcile(self) -> None:
        """Make data files and checkpoints agree, after a crash.

        A data file without a committed checkpoint was in flight: it goes, and its scans are
        scored again. So does a checkpoint without its file, whose scans would be lost.
        """
        committed = self.committed_files()
        filesystem, base = open_filesystem(self.folder.location)
        for name in self.folder.names(self.rows):
            if name not in committed:
                filesystem.delete_file(f"{base}/{self.rows}/{name}")
        for name in self.folder.names(self.checkpoints):
            if name not in committed.values():
                filesystem.delete_file(f"{base}/{self.checkpoints}/{name}")

    def drop_checkpoints(self) -> None:
        """Forget the checkpoints; the manifest has taken their place."""
        filesystem, base = open_filesystem(self.folder.location)
        if self.folder.names(self.checkpoints):
            filesystem.delete_dir(f"{base}/{self.checkpoints}")


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        generation: the one that this run writes.
        work: catalog rows that must have a row in this generation when it is committed.
        resumed: how many of them an interrupted attempt has committed already.
        known: catalog rows that earlier generations have scored.
        supersedes: scan ids that stop being current, by the generation that holds their row.
    """

    generation: Generation
    work: pa.Table
    resumed: int
    known: int
    supersedes: dict[int, list[int]] = field(default_factory=dict)

    @property
    def remaining(self) -> int:
        """Scans still to be scored."""
        return int(self.work.num_rows) - self.resumed


def make_plan(
    folder: ResultsFolder,
    catalog: pa.Table,
    manifests: Sequence[dict[str, Any]],
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
        CatalogError: a scan has the id of another that was scored earlier.
    """
    generation = Generation(folder, len(manifests) + 1, fingerprint)
    wanted = _not_committed(folder, redact_catalog(catalog, redaction), manifests)
    if retry_quarantined:
        wanted |= np.isin(catalog["scan_id"].to_numpy(), _quarantined_ids(folder, manifests))
    new = catalog.filter(pa.array(wanted))
    known = catalog.num_rows - new.num_rows
    done = np.sort(generation.committed_ids())
    work = _resume(generation, new, done)
    if limit is not None:
        work = _limited(work, done, limit)
    shown = redact_catalog(work, redaction)
    supersedes = _superseded(folder, shown, manifests)
    own = _superseded_inside(shown)
    if own:
        supersedes[generation.number] = own
    resumed = int(np.isin(work["scan_id"].to_numpy(), done).sum())
    return Plan(generation, work, resumed, known, supersedes)


def write_work(plan: Plan, attempt: str, redaction: UriRedaction | None = None) -> list[str]:
    """Write the work as the generation's catalog; returns paths below the folder.

    Each attempt has files of its own: those of an interrupted one are still needed until this one
    is complete. A redacted catalog cannot be scored from: it takes the other's place at the end.
    """
    paths = []
    work = redact_catalog(plan.work, redaction)
    starts = range(0, max(plan.work.num_rows, 1), ROWS_PER_CATALOG_FILE)
    for part, start in enumerate(starts):
        buffer = io.BytesIO()
        rows = work.slice(start, ROWS_PER_CATALOG_FILE)
        pq.write_table(rows, buffer, compression="zstd")
        path = f"{CATALOGS}/{plan.generation.name}/{attempt}-{part:05d}.parquet"
        write_atomically(plan.generation.folder.at(path), buffer.getvalue())
        paths.append(path)
    return paths


def drop_other_attempts(generation: Generation, kept: Sequence[str]) -> None:
    """Remove the catalogs of interrupted attempts."""
    filesystem, base = open_filesystem(generation.folder.location)
    parent = f"{CATALOGS}/{generation.name}"
    for name in generation.folder.names(parent):
        if f"{parent}/{name}" not in kept:
            filesystem.delete_file(f"{base}/{parent}/{name}")


def _not_committed(
    folder: ResultsFolder, catalog: pa.Table, manifests: Sequence[dict[str, Any]]
) -> npt.NDArray[np.bool_]:
    """Which catalog rows are in no generation; one generation in memory at a time."""
    ids = catalog["scan_id"].to_numpy()
    fresh = np.ones(len(ids), dtype=bool)
    for manifest in manifests:
        earlier = folder.catalog_of(manifest, ["scan_id", "path", "frame"])
        seen = np.isin(ids, earlier["scan_id"].to_numpy())
        _check_same_scans(catalog.filter(pa.array(seen)), earlier)
        fresh &= ~seen
    return fresh


def _quarantined_ids(
    folder: ResultsFolder, manifests: Sequence[dict[str, Any]]
) -> npt.NDArray[np.int64]:
    tables = current_rows(folder, manifests, ["scan_id", "status"])
    return _ids([table.filter(pc.equal(table["status"], "quarantined")) for table in tables])


def _check_same_scans(ours: pa.Table, earlier: pa.Table) -> None:
    both = ours.select(["scan_id", "path", "frame"]).join(
        earlier, "scan_id", join_type="inner", right_suffix="_then"
    )
    other = pc.or_(
        pc.not_equal(both["path"], both["path_then"]),
        pc.not_equal(both["frame"], both["frame_then"]),
    )
    clash = both.filter(other)
    if clash.num_rows:
        row = clash.slice(0, 1).to_pylist()[0]
        raise CatalogError(
            f"'{row['path']}' has the scan id of '{row['path_then']}', scored earlier: their "
            "hashes collide; rename one of them"
        )


def _resume(generation: Generation, new: pa.Table, done: npt.NDArray[np.int64]) -> pa.Table:
    """Add scans that an interrupted attempt committed and that have since changed or gone."""
    gone = np.setdiff1d(done, new["scan_id"].to_numpy())
    if not len(gone):
        return new
    parent = f"{CATALOGS}/{generation.name}"
    names = generation.folder.names(parent)
    tables = generation.folder.read_parquet([f"{parent}/{name}" for name in names])
    earlier = pa.concat_tables(tables, promote_options="default")
    kept = earlier.filter(pc.is_in(earlier["scan_id"], value_set=pa.array(gone)))
    _, first = np.unique(kept["scan_id"].to_numpy(), return_index=True)
    # First, so that the newer version of the same file comes after it.
    return pa.concat_tables([kept.take(pa.array(first)), new], promote_options="default")


def _limited(work: pa.Table, done: npt.NDArray[np.int64], limit: int) -> pa.Table:
    committed = np.isin(work["scan_id"].to_numpy(), done)
    chosen = committed | (np.cumsum(~committed) <= limit)
    return work.filter(pa.array(chosen))


def _superseded(
    folder: ResultsFolder, work: pa.Table, manifests: Sequence[dict[str, Any]]
) -> dict[int, list[int]]:
    """Earlier rows of the same (uri, frame)."""
    if not work.num_rows:
        return {}
    keys = work.select(["uri", "frame"])
    found: dict[int, list[int]] = {}
    for manifest in manifests:
        earlier = folder.catalog_of(manifest, ["scan_id", "uri", "frame"])
        old = earlier.join(keys, ["uri", "frame"], join_type="left semi")["scan_id"].to_pylist()
        if old:
            found[int(manifest["generation"])] = sorted(old)
    return found


def _superseded_inside(work: pa.Table) -> list[int]:
    """Of two versions of a file in one generation the later one, as written, is current."""
    latest: dict[tuple[str, int], int] = {}
    old = []
    counts = work.group_by(["uri", "frame"]).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if not twice.num_rows:
        return []
    rows = work.join(twice.select(["uri", "frame"]), ["uri", "frame"], join_type="left semi")
    order = {value: i for i, value in enumerate(work["scan_id"].to_pylist())}
    for row in sorted(rows.to_pylist(), key=lambda row: order[row["scan_id"]]):
        key = (row["uri"], row["frame"])
        if key in latest:
            old.append(latest[key])
        latest[key] = row["scan_id"]
    return sorted(old)


def _prefix_in(name: str, prefixes: dict[str, str]) -> str | None:
    stem = name.removesuffix(".parquet")
    while stem and stem not in prefixes:
        cut = max(stem.rfind("_"), stem.rfind("-"))
        stem = stem[:cut] if cut > 0 else ""
    return stem or None


def _ids(tables: Sequence[pa.Table]) -> npt.NDArray[np.int64]:
    parts = [table["scan_id"].to_numpy() for table in tables]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
