"""Rows of many files into few, sorted by patient, study and series, in bounded memory.

The rows are read once to take a sample of their keys, whose quantiles divide them into parts of
about one file each. Then as many parts as fit into memory are collected at a time.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

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
class Source:
    """A file of rows.

    Attributes:
        path: below the folder.
        gone: sorted ids of its rows that are not current.
        superseded: none of its rows is.
    """

    path: str
    gone: Ids
    superseded: bool = False

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


def survey(folder: ResultsFolder, sources: Sequence[Source]) -> tuple[Survey, Survey]:
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


def collect(
    folder: ResultsFolder,
    sources: Sequence[Source],
    current: bool,
    bounds: Sequence[str],
    first: int,
    last: int,
) -> Iterator[pa.Table | None]:
    """Parts `first` to `last`, sorted, all held at once; None for one without rows."""
    held: list[list[pa.Table]] = [[] for _ in range(first, last + 1)]
    for source in sources:
        for rows in read_batches(folder, source.path):
            chosen = rows.filter(pa.array(source.wanted(rows, current)))
            chosen = chosen.append_column(KEY, _keys(chosen))
            parts = _parts(chosen[KEY], bounds)
            for number in np.unique(parts[(parts >= first) & (parts <= last)]):
                held[number - first].append(chosen.filter(pa.array(parts == number)))
    for number in range(len(held)):
        tables, held[number] = held[number], []
        yield _sorted(tables) if tables else None


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
    rows = pa.concat_tables(tables, promote_options="default")
    names = (KEY, "frame", "scored_at", "scan_id")
    order = pc.sort_indices(rows, [(name, "ascending") for name in names])
    return rows.take(order).drop_columns([KEY])
