"""One run's share of a results folder: its files, and making them agree after a crash."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from braintumor_ray.predict.results import (
    CATALOGS,
    CHECKPOINTS,
    MANIFESTS,
    ROWS,
    ResultsFolder,
    is_compacted,
    row_files,
)
from braintumor_ray.scoring.scans import Ids, are_distinct, are_in, joined
from braintumor_ray.storage import is_local, local_path, open_filesystem

PENDING = ".pending.parquet"
READERS = 16  # files read at a time: an object store's latency, not its bandwidth, is the limit


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
        """The number as in file names."""
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

    def read_files(
        self, names: Sequence[str], columns: Sequence[str]
    ) -> Iterator[tuple[str, pa.Table]]:
        """Some columns of data files, by file, several read at a time and few held."""
        paths = [f"{self.rows}/{name}" for name in names]
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(paths), 4 * READERS):
                batch = paths[start : start + 4 * READERS]
                tables = pool.map(
                    lambda p: next(self.folder.read_parquet([p], list(columns))), batch
                )
                yield from zip(batch, tables, strict=True)

    def committed_ids(self) -> Ids:
        """Scan ids in committed files of this generation, in no order: 8 bytes a scan."""
        names = list(self.committed_files())
        return joined(t["scan_id"].to_numpy() for _, t in self.read_files(names, ["scan_id"]))

    def reconcile(self) -> None:
        """Make data files and checkpoints agree, after a crash.

        A data file without a committed checkpoint was in flight: it goes, and its scans are
        scored again. So does a checkpoint without its file, whose scans would be lost.
        """
        committed = self.committed_files()
        kept = set(committed.values())
        for name in self.folder.names(self.rows):
            if name not in committed:
                self.folder.delete_file(self.rows, name)
        for name in self.folder.names(self.checkpoints):
            if name not in kept:
                self.folder.delete_file(self.checkpoints, name)

    def settled_ids(self) -> Ids:
        """Committed scan ids, each once: files that repeat a scan of another file are given up.

        A writer that outlived its driver or its node may commit scans that were meanwhile scored
        again. Nothing is published yet: what only the lost file had is scored once more.
        """
        committed = self.committed_files()
        files = self.read_files(sorted(committed), ["scan_id"])
        found = {path: table["scan_id"].to_numpy() for path, table in files}
        ids = joined(iter(found.values()))
        if are_distinct(ids):
            return ids
        seen = np.empty(0, np.int64)
        for path, own in sorted(found.items(), key=lambda pair: -len(pair[1])):
            if are_distinct(own) and not are_in(own, seen).any():
                seen = np.sort(np.concatenate([seen, own]))
                continue
            self.folder.delete_file(self.checkpoints, committed[path.rsplit("/", 1)[-1]])
            self.folder.delete_file(path)
        return seen

    def drop_checkpoints(self) -> None:
        """Forget the checkpoints; the manifest has taken their place."""
        if self.folder.names(self.checkpoints):
            filesystem, path = open_filesystem(self.folder.at(self.checkpoints))
            filesystem.delete_dir(path)
        if is_local(self.folder.location):  # a store has no empty folders
            for parent in (self.checkpoints, f"{CHECKPOINTS}/{self.fingerprint}", CHECKPOINTS):
                with suppress(OSError):  # not there, or of the next generation, in flight
                    local_path(self.folder.at(parent)).rmdir()


def drop_unlisted(generation: Generation, manifest: dict[str, Any]) -> None:
    """Remove catalogs of interrupted attempts, and rows of a writer that outlived the commit."""
    listed = {*manifest["catalogs"], *row_files(manifest)}
    for parent in (f"{CATALOGS}/{generation.name}", generation.rows):
        for name in generation.folder.names(parent):
            if f"{parent}/{name}" not in listed:
                generation.folder.delete_file(parent, name)


def tidy_newest(folder: ResultsFolder, fingerprint: str) -> None:
    """What a commit does after its manifest, for one that was killed in between.

    A compaction has done it before its own; readers may still need the catalogs that it replaces.
    """
    committed = [name for name in folder.names(MANIFESTS) if name.endswith(".json")]
    if not committed:
        return
    manifest = folder.manifest(int(committed[-1].removesuffix(".json")))
    if not is_compacted(manifest):
        generation = Generation(folder, int(manifest["generation"]), fingerprint)
        drop_unlisted(generation, manifest)
        generation.drop_checkpoints()


def _prefix_in(name: str, prefixes: dict[str, str]) -> str | None:
    stem = name.removesuffix(".parquet")
    while stem and stem not in prefixes:
        cut = max(stem.rfind("_"), stem.rfind("-"))
        stem = stem[:cut] if cut > 0 else ""
    return stem or None
