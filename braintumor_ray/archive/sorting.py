"""Rows of many files into few, sorted by patient, study and series, in bounded memory.

The rows are read once to take a sample of their keys, whose quantiles divide them into parts of
about one file each. They are read again to be divided; what does not fit into memory waits in a
temporary file. Then one part after the other is sorted.
"""

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from braintumor_ray.archive.content import Content, content_of
from braintumor_ray.errors import ResultsError
from braintumor_ray.predict.results import ResultsFolder
from braintumor_ray.scoring.scans import Ids, are_in
from braintumor_ray.storage import open_filesystem, write_atomically
from braintumor_ray.types import Mask

ROWS_PER_BATCH = 20_000
ROWS_PER_GROUP = 50_000  # of a written file: readers skip groups whose patients they do not want
SAMPLE_EVERY = 64
KEY = "__key"


@dataclass(frozen=True)
class RowFile:
    """A file of rows.

    Attributes:
        path: below the folder.
        gone: sorted ids of its rows that are not current.
        superseded: none of its rows is.
    """

    path: str
    gone: Ids
    superseded: bool = False

    def may_hold(self, current: bool) -> bool:
        """Whether rows that are current, or that are not, can be in it at all."""
        return not self.superseded if current else self.superseded or len(self.gone) > 0

    def wanted(self, rows: pa.Table, current: bool) -> Mask:
        """Which rows are current, or which are not: bool (n,)."""
        if self.superseded:
            return np.full(rows.num_rows, not current)
        old = are_in(rows["scan_id"].to_numpy(), self.gone)
        return ~old if current else old


@dataclass
class Survey:
    """What the first reading of some rows finds.

    Attributes:
        content: of the rows.
        nbytes: of the rows as Arrow.
        keys: of a sample.
    """

    content: Content = field(default_factory=Content)
    nbytes: int = 0
    keys: list[str] = field(default_factory=list)

    def add(self, rows: pa.Table) -> None:
        """Take rows into account."""
        if rows.num_rows:
            first = -self.content.rows % SAMPLE_EVERY
            chosen = pa.array(np.arange(first, rows.num_rows, SAMPLE_EVERY))
            self.keys += _keys(rows.take(chosen)).to_pylist()
            self.content += content_of(rows)
            self.nbytes += rows.nbytes

    def bounds(self, parts: int) -> list[str]:
        """Smallest keys of all parts but the first."""
        ordered = sorted(self.keys)
        places = (len(ordered) * number // parts for number in range(1, parts))
        return sorted({ordered[place] for place in places}) if ordered else []


def survey(folder: ResultsFolder, sources: Sequence[RowFile]) -> tuple[Survey, Survey]:
    """Read everything once: the current rows, and the others.

    Raises:
        ResultsError: a file cannot be read.
    """
    current, others = Survey(), Survey()
    for source in sources:
        for rows in read_batches(folder, source.path):
            wanted = source.wanted(rows, current=True)
            current.add(rows if wanted.all() else rows.filter(pa.array(wanted)))
            others.add(rows.filter(pa.array(~wanted)))
    return current, others


def sorted_parts(
    folder: ResultsFolder,
    sources: Sequence[RowFile],
    current: bool,
    bounds: Sequence[str],
    wanted: Mask,
    most_bytes: float,
) -> Iterator[tuple[int, pa.Table]]:
    """The wanted parts that have rows, one after the other, each sorted.

    Args:
        folder: the results.
        sources: their files of rows.
        current: the current rows, or the others.
        bounds: smallest keys of all parts but the first.
        wanted: bool (parts,).
        most_bytes: of rows that wait in memory.

    Raises:
        ResultsError: a file cannot be read.
    """
    with tempfile.TemporaryFile(prefix="braintumor-compact-") as file:
        waiting = _Waiting(len(wanted), most_bytes, file)
        for source in sources:
            for rows in read_batches(folder, source.path) if source.may_hold(current) else ():
                chosen = rows.filter(pa.array(source.wanted(rows, current)))
                parts = _parts(_keys(chosen), bounds)
                order = np.argsort(parts, kind="stable")
                order = order[wanted[parts[order]]]
                waiting.add(chosen.take(pa.array(order)), parts[order])
        waiting.settle()
        for number in range(len(wanted)):
            tables = waiting.take(number)
            if tables:
                yield number, _sorted(tables)


class _Waiting:
    """Rows of several parts: in memory up to a limit, then in a file.

    The file has no name: a process that is killed leaves nothing behind.
    """

    def __init__(self, parts: int, most_bytes: float, file: IO[bytes]) -> None:
        self._held: list[list[pa.Table]] = [[] for _ in range(parts)]
        self._places: list[list[int]] = [[] for _ in range(parts)]
        self._file, self._most, self._nbytes = file, most_bytes, 0

    def add(self, rows: pa.Table, parts: Ids) -> None:
        """Take rows that are sorted by their part."""
        numbers, starts = np.unique(parts, return_index=True)
        stops = np.append(starts[1:], len(parts))[: len(starts)]
        for number, start, stop in zip(numbers, starts, stops, strict=True):
            self._held[number].append(rows.slice(start, stop - start))
        self._nbytes += rows.nbytes
        if self._nbytes > self._most:
            self._flush()

    def settle(self) -> None:
        """All rows are there: memory is for sorting now, if it was short before."""
        if self._file.tell():
            self._flush()

    def take(self, number: int) -> list[pa.Table]:
        """The rows of a part."""
        tables = []
        for place in self._places[number]:
            self._file.seek(place)
            tables.append(pa.ipc.open_stream(self._file).read_all())
        tables += self._held[number]
        self._held[number] = []
        return tables

    def _flush(self) -> None:
        packed = pa.ipc.IpcWriteOptions(compression="lz4")
        for held, places in zip(self._held, self._places, strict=True):
            if held:
                rows = pa.concat_tables(held, promote_options="default").combine_chunks()
                places.append(self._file.tell())
                with pa.ipc.new_stream(self._file, rows.schema, options=packed) as stream:
                    stream.write_table(rows)
                held.clear()
        self._nbytes = 0


def write_rows(location: str, rows: pa.Table) -> int:
    """Write a file of sorted rows, whole or not at all; returns its bytes."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", row_group_size=ROWS_PER_GROUP)
    write_atomically(location, buffer.getvalue())
    return buffer.tell()


def read_batches(
    folder: ResultsFolder, path: str, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """A file of rows in tables of at most `ROWS_PER_BATCH`.

    Raises:
        ResultsError: it cannot be read.
    """
    filesystem, inside = open_filesystem(folder.at(path))
    try:
        with filesystem.open_input_file(inside) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(ROWS_PER_BATCH, columns=columns):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(
            f"'{folder.at(path)}' cannot be read: {error}; nothing was compacted: "
            "'braintumor-ray verify' shows what else is wrong"
        ) from error


def _keys(rows: pa.Table) -> pa.ChunkedArray:
    """One text a row that sorts as patient, study, series, file do; unknown ones come first."""
    names = ("patient_key", "study_key", "series_key", "uri")
    columns = [pc.fill_null(rows[name], "") for name in names]
    joined: Callable[..., Any] = pc.binary_join_element_wise
    return joined(*columns, "\x1f")


def _parts(keys: pa.ChunkedArray, bounds: Sequence[str]) -> Ids:
    """int64 (n,): the part of each row."""
    found = np.zeros(len(keys), np.int64)
    for bound in bounds:
        found += pc.greater_equal(keys, bound).to_numpy()
    return found


def _sorted(tables: list[pa.Table]) -> pa.Table:
    """The rows of some tables; the list is emptied, so that they are in memory once."""
    rows = pa.concat_tables(tables, promote_options="default")
    tables.clear()
    schema, names = rows.schema, (KEY, "frame", "scored_at", "scan_id")
    keyed = rows.select(names[1:]).append_column(KEY, _keys(rows))
    order = pc.sort_indices(keyed, [(name, "ascending") for name in names])
    del keyed
    columns = []
    for name in schema.names:  # one after the other is sorted and then dropped as it was
        columns.append(rows[name].take(order))
        rows = rows.drop_columns([name])
    return pa.table(columns, schema=schema)
