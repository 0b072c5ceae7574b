"""Catalogs read a part at a time, so that the driver's memory does not grow with the archive."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.listing import Listing, left_out_of
from braintumor_ray.catalog.local_key import check_catalog
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.schema import check_columns, completed
from braintumor_ray.catalog.stream import can_stream, stream_catalog
from braintumor_ray.errors import CatalogError
from braintumor_ray.storage import open_filesystem
from braintumor_ray.types import Mask, Progress

ROWS_PER_PART = 20_000  # about 10 MB with what is made of them
SEARCHED = 100_000  # ids looked up at a time

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scans:
    """Rows of a catalog, in parts.

    Attributes:
        num_rows: in all parts together.
        read_parts: gives tables of at most `ROWS_PER_PART` rows with the named columns (None:
            all), always in the same order.
        left_out: entries of the source that are no scans, where it was listed for this.
        key_check: identifies the key that hashed the ids; None: not known, or there are none.
        known: objects of the source that are scored and were not looked at again.
    """

    num_rows: int
    read_parts: Callable[[Sequence[str] | None], Iterator[pa.Table]]
    left_out: Listing = field(default_factory=lambda: Listing([]))
    key_check: str | None = None
    known: int = 0

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Tables of at most `ROWS_PER_PART` rows."""
        return self.read_parts(columns)

    @cached_property
    def ids(self) -> Ids:
        """int64 (n,): the scan ids, 8 bytes a scan; all that is kept of most rows."""
        return joined(part["scan_id"].to_numpy() for part in self.parts(["scan_id"]))

    def read(self) -> pa.Table:
        """All rows in memory."""
        return pa.concat_tables(self.parts(), promote_options="default")


@dataclass(frozen=True)
class Work:
    """The scans of one generation: some rows of a catalog, after some of an earlier attempt.

    Attributes:
        catalog: the source.
        chosen: bool (n,), which of its rows.
        carried: rows that an interrupted attempt has committed and the catalog no longer has.
    """

    catalog: Scans
    chosen: Mask
    carried: pa.Table

    @property
    def num_rows(self) -> int:
        """Scans."""
        return int(self.carried.num_rows) + int(np.count_nonzero(self.chosen))

    @cached_property
    def ids(self) -> Ids:
        """int64 (n,): their ids, in the order of the rows."""
        return np.concatenate([self.carried["scan_id"].to_numpy(), self.catalog.ids[self.chosen]])

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Tables of at most `ROWS_PER_PART` rows; at least one, which may be empty."""
        yield self.carried if columns is None else self.carried.select(list(columns))
        start = 0
        for part in self.catalog.parts(columns):
            chosen = self.chosen[start : start + part.num_rows]
            start += part.num_rows
            if chosen.any():
                yield part.filter(pa.array(chosen))

    def read(self) -> pa.Table:
        """All rows in memory."""
        return pa.concat_tables(self.parts(), promote_options="default")


def open_scans(
    source: str, options: CatalogOptions | None = None, progress: Progress | None = None
) -> Scans:
    """The catalog of any SOURCE.

    That of a folder or a CSV and one that is Parquet already never are in memory as a whole; that
    of volumes that are cut in another way than the default is.

    Raises:
        CatalogError: nothing there, or not a catalog.
    """
    options = options or CatalogOptions()
    if source.rstrip("/").endswith(".parquet"):
        return _scans_in_parquet(source.rstrip("/"), options)
    if can_stream(source, options):
        return _scans_in_folder(source, options, progress)
    table = load_catalog(source, options, progress)
    check = check_catalog(source, table.schema, IdentityHash())
    scans = scans_in_table(table.replace_schema_metadata(None))
    return replace(scans, left_out=left_out_of(table.schema), key_check=check)


def scans_in_table(table: pa.Table) -> Scans:
    """A catalog that is in memory."""

    def parts(columns: Sequence[str] | None) -> Iterator[pa.Table]:
        chosen = table if columns is None else table.select(list(columns))
        for start in range(0, max(table.num_rows, 1), ROWS_PER_PART):
            yield chosen.slice(start, ROWS_PER_PART)

    return Scans(table.num_rows, parts)


def scans_in_files(
    location: str,
    paths: Sequence[str],
    filesystem: Any,  # noqa: ANN401 - pyarrow has no stubs
    count: int | None = None,
) -> Scans:
    """Catalogs in Parquet files.

    Raises:
        CatalogError: one cannot be read, also later, when its rows are.
    """
    if count is None:
        count = sum(_metadata(location, path, filesystem).num_rows for path in paths)

    def parts(columns: Sequence[str] | None) -> Iterator[pa.Table]:
        for path in paths:
            yield from _parts_of_file(location, path, filesystem, columns)

    return Scans(count, parts)


def joined(parts: Iterable[Ids]) -> Ids:
    """int64 (n,) of several; empty of none."""
    return np.concatenate([np.empty(0, np.int64), *parts])


def are_distinct(ids: Ids) -> bool:
    """Whether no id is there twice. `np.unique` takes several times the memory."""
    ordered = np.sort(ids)
    return not bool((ordered[1:] == ordered[:-1]).any())


def are_in(ids: Ids, ordered: Ids) -> Mask:
    """Which ids are among others, which are sorted: bool (n,).

    `np.isin` takes several times the memory, and sorts the others again for every part.
    """
    found = np.zeros(len(ids), bool)
    for start in range(0, len(ids) if len(ordered) else 0, SEARCHED):
        part = ids[start : start + SEARCHED]
        found[start : start + SEARCHED] = ordered[places_in(ordered, part)] == part
    return found


def places_in(ordered: Ids, ids: Ids) -> Ids:
    """int64 (n,): where ids are among others, which are sorted and at least one, if they are there.

    Ids are random: searched as they come, each step misses the cache. In their order it is 6 times
    faster among 10 million.
    """
    by_id = np.argsort(ids)
    places = np.empty(len(ids), np.int64)
    places[by_id] = np.searchsorted(ordered, ids[by_id])
    return np.minimum(places, len(ordered) - 1)


def keys_of(table: pa.Table, name: str, *, frame: bool = True) -> Ids:
    """int64 (n,): a hash of (column `name`, frame) of each row, or of the column alone.

    Equal rows have equal keys in this process; unequal ones hardly ever: confirm what it finds.
    """
    values = table[name].to_pylist()
    keys = zip(values, table["frame"].to_pylist(), strict=True) if frame else values
    return np.fromiter(map(hash, keys), np.int64, table.num_rows)


def _scans_in_folder(source: str, options: CatalogOptions, progress: Progress | None) -> Scans:
    """Cataloged into a file that has no name from then on: it ends with its last reader."""
    with tempfile.TemporaryDirectory(prefix="braintumor-scans-") as work:
        path = f"{work}/catalog.parquet"
        made = stream_catalog(source, path, options, progress=progress)
        kept = pa.OSFile(path)
    check = check_catalog(source, pq.read_schema(kept), IdentityHash())

    def parts(columns: Sequence[str] | None) -> Iterator[pa.Table]:
        for part in _parts_of_stream(kept, columns):
            yield part.replace_schema_metadata(None)

    return Scans(made.scans, parts, made.left_out, check)


def _scans_in_parquet(source: str, options: CatalogOptions) -> Scans:
    from pyarrow.fs import FileSelector, FileType

    filesystem, base = open_filesystem(source)
    try:
        if filesystem.get_file_info(base).type == FileType.Directory:
            infos = filesystem.get_file_info(FileSelector(base, recursive=True))
            paths = sorted(info.path for info in infos if info.path.endswith(".parquet"))
        else:
            paths = [base]
    except OSError as error:
        raise CatalogError(f"catalog '{source}' cannot be read: {error}") from error
    check = None
    for path in paths[:1]:
        schema = _metadata(source, path, filesystem).schema.to_arrow_schema()
        check_columns(source, schema)
        check = check_catalog(source, schema, options.identity)
    return replace(scans_in_files(source, paths, filesystem), key_check=check)


def _metadata(source: str, path: str, filesystem: Any) -> Any:  # noqa: ANN401
    try:
        return pq.read_metadata(path, filesystem=filesystem)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"catalog '{source}' cannot be read: {error}") from error


def _parts_of_file(
    source: str,
    path: str,
    filesystem: Any,  # noqa: ANN401 - pyarrow has no stubs
    columns: Sequence[str] | None,
) -> Iterator[pa.Table]:
    try:
        with filesystem.open_input_file(path) as stream:
            yield from _parts_of_stream(stream, columns)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"catalog '{source}' cannot be read: {error}") from error


def _parts_of_stream(stream: pa.NativeFile, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    for batch in pq.ParquetFile(stream).iter_batches(ROWS_PER_PART, columns=columns):
        part = pa.Table.from_batches([batch])
        yield completed(part) if columns is None else part
