"""Ray Data for training: decode once into uint8 shards, then stream them."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from braintumor_ray.decode.files import SCAN_COLUMNS
from braintumor_ray.decode.head import Box
from braintumor_ray.decode.prepare import WORKER, PreparedScan, decode_version
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.reading import decode_scans, scan_columns
from braintumor_ray.decode.sandbox import DecodeSandbox
from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.errors import CatalogError
from braintumor_ray.parquet_dataset import read_rows
from braintumor_ray.progress import repeated
from braintumor_ray.storage import open_filesystem, read_bytes, write_atomically
from braintumor_ray.types import Progress

SCANS_PER_SHARD = 512
SHARD_COLUMNS = ("status", "reason", "pixel_sha256", "hashes", "image")
INDEX = "index.json"
MOST_UNREADABLE = 0.5
COUNTED = 32  # scans that a decoder does between two reports


@dataclass(frozen=True)
class Shards:
    """Decoded scans as Parquet: scan_id, status, reason, size, hashes and the uint8 square.

    Attributes:
        location: their folder.
        files: names inside it.
        reused: an earlier run had written them.
    """

    location: str
    files: tuple[str, ...]
    reused: bool

    @property
    def paths(self) -> list[str]:
        """Paths for pyarrow, on the file system of `location`."""
        _, base = open_filesystem(self.location)
        return [f"{base}/{name}" for name in self.files]

    def squares_of(
        self, scan_ids: npt.NDArray[np.int64], size: int, most: int
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """At most so many of some scans, with their squares uint8 (S, S); a file at a time."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        filesystem, _ = open_filesystem(self.location)
        for path in self.paths:
            table = pq.read_table(path, columns=["scan_id", "image"], filesystem=filesystem)
            table = table.filter(pc.is_in(table["scan_id"], value_set=pa.array(scan_ids)))
            table = table.slice(0, most)
            yield from zip(table["scan_id"].to_pylist(), squares(table["image"], size), strict=True)
            most -= table.num_rows
            if not most:
                return

    def boxes(self, scan_ids: npt.NDArray[np.int64]) -> list[Box]:
        """The part of its picture that each scan's square shows, of shards of cropped squares."""
        table = self.read(["scan_id", "box"])
        found = dict(zip(table["scan_id"].to_pylist(), table["box"].to_pylist(), strict=True))
        return [Box(*found[scan]) for scan in scan_ids.tolist()]

    def read(self, columns: list[str]) -> pa.Table:
        """Some columns of all shards, in this process."""
        import pyarrow.parquet as pq

        filesystem, _ = open_filesystem(self.location)
        tables = [
            pq.read_table(path, columns=columns, filesystem=filesystem) for path in self.paths
        ]
        return pa.concat_tables(tables)


@dataclass(frozen=True)
class GuidedRows:
    """What guided training knows of each scan.

    Attributes:
        masks: its tumor, packed (`training.guidance.pack_mask`); None where it is not known.
        repeats: int64 (n,), how often it is shown per epoch.
    """

    masks: Sequence[bytes | None]
    repeats: npt.NDArray[np.int64]

    def take(self, order: npt.NDArray[np.int64]) -> "GuidedRows":
        """The same of some scans, in their order."""
        return GuidedRows([self.masks[row] for row in order], self.repeats[order])


class _DecodeToShard:
    """Catalog rows in, shard rows out."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: DecodeLimits,
        counter: Any,  # noqa: ANN401 - a handle
    ) -> None:
        self._preprocessing, self._limits, self._counter = preprocessing, limits, counter
        self._sandbox = DecodeSandbox(WORKER)

    def __call__(self, rows: pa.Table) -> pa.Table:
        scans = decode_scans(
            rows, self._preprocessing, limits=self._limits, hashed=True, sandbox=self._sandbox
        )
        names = SHARD_COLUMNS if self._preprocessing.crop == "none" else (*SHARD_COLUMNS, "box")
        read = list(self._counted(iter(scans)))
        return pa.table({"scan_id": rows["scan_id"], **scan_columns(read, names)})

    def _counted(self, scans: Iterator[PreparedScan]) -> Iterator[PreparedScan]:
        while batch := list(islice(scans, COUNTED)):
            yield from batch
            self._counter.add.remote(len(batch))


def decode_to_shards(
    catalog: str,
    table: pa.Table,
    cache: str,
    preprocessing: Preprocessing,
    limits: DecodeLimits | None = None,
    progress: Progress | None = None,
) -> Shards:
    """Decode every scan of a catalog once; reuse the shards of an earlier run where they fit.

    Args:
        catalog: location of the catalog file, for Ray Data to read.
        table: the same catalog in memory.
        cache: folder of shards; each catalog and decode version has its own folder inside.
        preprocessing: decides the square that is kept.
        limits: what a file may cost.
        progress: called with (scans done, scans), from a thread.
    """
    location = _shard_folder(table, cache, preprocessing)
    if (known := known_shards(table, cache, preprocessing)) is not None:
        return known
    counter = _Counter.remote()  # type: ignore[attr-defined]
    filesystem, path = open_filesystem(catalog)
    data = read_rows([path], filesystem, ["scan_id", *SCAN_COLUMNS])
    shards = data.repartition(target_num_rows_per_block=SCANS_PER_SHARD).map_batches(
        _DecodeToShard,
        fn_constructor_args=(preprocessing, limits or DecodeLimits(), counter),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=1,
        compute=ActorPoolStrategy(min_size=1, max_size=_spare_cpus()),
    )
    attempt = uuid.uuid4().hex[:12]  # what an interrupted attempt left is in no index
    target, base = open_filesystem(f"{location}/{attempt}")
    target.create_dir(base, recursive=True)
    with _watched(counter, table.num_rows, progress):
        shards.write_parquet(base, filesystem=target, compression="zstd")
    return _publish(location, attempt, table.num_rows)


def known_shards(table: pa.Table, cache: str, preprocessing: Preprocessing) -> Shards | None:
    """The shards of exactly these scans, where a run has written them; else None."""
    location = _shard_folder(table, cache, preprocessing)
    known = _index(location)
    return None if known is None else Shards(location, known, reused=True)


def _shard_folder(table: pa.Table, cache: str, preprocessing: Preprocessing) -> str:
    ids = np.sort(table["scan_id"].to_numpy()).tobytes()
    key = sha256(ids + decode_version(preprocessing).encode()).hexdigest()[:24]
    return f"{cache.rstrip('/')}/{key}"


@ray.remote(num_cpus=0)
class _Counter:
    """Scans that all decoders have done."""

    def __init__(self) -> None:
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count

    def read(self) -> int:
        return self._done


def _watched(
    counter: Any,  # noqa: ANN401 - a handle
    total: int,
    progress: Progress | None,
) -> AbstractContextManager[None]:
    """Pass the counter on while the decoders work."""
    if progress is None:
        return nullcontext()
    return repeated(
        lambda: progress(min(ray.get(counter.read.remote()), total), total), 1.0, "decoding"
    )


def training_dataset(
    shards: Shards,
    scan_ids: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    square_bytes: int,
    guided: "GuidedRows | None" = None,
) -> Dataset:
    """The named scans with their class index: columns scan_id, label, image (S * S bytes).

    Args:
        shards: decoded scans.
        scan_ids: int64 (n,), the scans of one split.
        labels: int64 (n,), their class indices.
        square_bytes: size of one image, S * S.
        guided: for further columns `mask` and `copy` (0 for the first of a repeated scan).
    """
    order = np.argsort(scan_ids)
    lookup = ray.put((scan_ids[order], labels[order], guided and guided.take(order)))
    filesystem, _ = open_filesystem(shards.location)
    data = read_rows(shards.paths, filesystem, ["scan_id", "image"])
    data = data.map_batches(_select(lookup), batch_format="pyarrow", batch_size=None, num_cpus=0.5)
    # In memory where it fits well: each epoch then starts at once, instead of reading again.
    return data.materialize() if len(scan_ids) * square_bytes < _memory_for_data() else data


def squares(column: pa.ChunkedArray, size: int) -> npt.NDArray[np.uint8]:
    """An image column of the shards, S * S bytes a row, as a new uint8 (n, S, S)."""
    values = column.combine_chunks()
    rows = [np.frombuffer(value.as_buffer(), np.uint8) for value in values]
    return np.stack(rows).reshape(-1, size, size) if rows else np.empty((0, size, size), np.uint8)


def mixed(catalog: pa.Table) -> pa.Table:
    """The rows in an order that has nothing to do with classes; a file's frames stay neighbors.

    Catalogs are in order of path, and so often of class. A buffer of some thousand scans cannot
    shuffle that away in a set of a million: shards must be mixed when they are written. Ids are
    hashes, so ordering files by them mixes, and is the same every time.
    """
    ids = catalog["scan_id"].to_numpy()
    files = catalog["uri"].combine_chunks().dictionary_encode().indices.to_numpy()
    lowest = np.full(catalog.num_rows, np.iinfo(np.int64).max)
    np.minimum.at(lowest, files, ids)
    order = np.lexsort((catalog["frame"].to_numpy(), lowest[files]))
    return catalog.take(pa.array(order))


def _select(lookup: Any) -> Callable[[pa.Table], pa.Table]:  # noqa: ANN401 - an object reference
    def select(rows: pa.Table) -> pa.Table:
        ids, labels, guided = ray.get(lookup)
        found = rows["scan_id"].to_numpy()
        position = np.minimum(np.searchsorted(ids, found), max(len(ids) - 1, 0))
        wanted = ids[position] == found if len(ids) else np.zeros(len(found), dtype=bool)
        kept = rows.filter(pa.array(wanted))
        chosen = position[wanted]
        kept = kept.append_column("label", pa.array(labels[chosen], pa.int64()))
        return kept if guided is None else _with_guidance(kept, chosen, guided)

    return select


def _with_guidance(rows: pa.Table, chosen: npt.NDArray[np.int64], guided: "GuidedRows") -> pa.Table:
    """Rows with their masks, each as often as it is shown."""
    times = guided.repeats[chosen]
    which = np.repeat(np.arange(len(chosen)), times)
    copies = np.arange(len(which)) - np.repeat(np.cumsum(times) - times, times)
    masks = pa.array([guided.masks[row] for row in chosen[which]], pa.binary())
    repeated = rows.take(pa.array(which)).append_column("mask", masks)
    return repeated.append_column("copy", pa.array(copies, pa.int64()))


def _publish(location: str, attempt: str, rows: int) -> Shards:
    """Write the index, after which the shards count as complete and are reused.

    Raises:
        CatalogError: rows are missing, or most scans could not be read: a fault of the place (a
            share that is not mounted) that a cache must not remember.
    """
    import pyarrow.parquet as pq
    from pyarrow.fs import FileSelector

    filesystem, base = open_filesystem(f"{location}/{attempt}")
    names = sorted(info.base_name for info in filesystem.get_file_info(FileSelector(base)))
    found = sum(pq.read_metadata(f"{base}/{n}", filesystem=filesystem).num_rows for n in names)
    if found != rows:
        raise CatalogError(
            f"{found} of {rows} scans were decoded into '{location}'; run the same command again"
        )
    files = tuple(f"{attempt}/{name}" for name in names)
    reasons = Counter(Shards(location, files, False).read(["reason"])["reason"].to_pylist())
    bad = rows - reasons.pop(None, 0)
    if bad > MOST_UNREADABLE * rows:
        raise CatalogError(
            f"{bad} of {rows} scans cannot be read, mostly: {reasons.most_common(1)[0][0]}"
        )
    write_atomically(f"{location}/{INDEX}", json.dumps(files).encode())
    return Shards(location, files, reused=False)


def _index(location: str) -> tuple[str, ...] | None:
    try:
        return tuple(json.loads(read_bytes(f"{location}/{INDEX}")))
    except FileNotFoundError:
        return None


def _memory_for_data() -> float:
    """Bytes of the object store that one data set may fill for good."""
    return 0.25 * float(ray.cluster_resources().get("object_store_memory", 0))


def _spare_cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 2)) - 2)
