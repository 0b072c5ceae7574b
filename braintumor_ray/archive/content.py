"""The content of many rows as one number, whatever their order and their files.

Each row is hashed to 64 bits over its columns by name; the digest is the number of rows and the
sum of their hashes. It finds faults of programs and disks, not forgery.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.uint64]

_NULL = np.uint64(0x9E3779B97F4A7C15)
_ODD = np.uint64(0xD1342543DE82EF95)
_WEIGHTS_SEED = 20
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Content:
    """What a set of rows holds; `+` joins two sets.

    Attributes:
        rows: how many.
        total: sum of their hashes modulo 2^64.
    """

    rows: int = 0
    total: int = 0

    def __add__(self, other: "Content") -> "Content":
        return Content(self.rows + other.rows, (self.total + other.total) % 2**64)

    def __str__(self) -> str:
        return f"{self.rows}:{self.total:016x}"


def content_of(rows: pa.Table) -> Content:
    """The content of a table; a column that is missing counts as one of nulls.

    Args:
        rows: numbers, booleans, timestamps, strings, and lists of these.
    """
    total = np.zeros(rows.num_rows, np.uint64)
    for name in rows.column_names:
        salt = np.uint64(zlib.crc32(name.encode()) * 2 + 1)
        total += _mixed(_column_hashes(rows[name]) * salt)
    return Content(rows.num_rows, int(_mixed(total).sum(dtype=np.uint64)))


def _column_hashes(column: pa.ChunkedArray) -> Hashes:
    """uint64 (n,): of the values; 0 for nulls, so that a missing column does not matter."""
    chunks = column.chunks
    return _hashes(pa.concat_arrays(chunks) if chunks else pa.array([], column.type))


def _hashes(array: Any) -> Hashes:  # noqa: ANN401 - pyarrow has no stubs
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.uint64)
    if pa.types.is_string(array.type) or pa.types.is_list(array.type):
        hashes = _of_lists(array)
    else:
        hashes = _mixed(_bits(array) + _NULL)
    hashes[array.is_null().to_numpy(zero_copy_only=False)] = 0
    return hashes


def _of_lists(array: Any) -> Hashes:  # noqa: ANN401 - pyarrow has no stubs
    """Of strings, by their bytes, and of lists, by their values and their places."""
    values: npt.NDArray[Any]
    if pa.types.is_string(array.type):
        lengths = pc.binary_length(array)
        there = array.drop_null()
        joined = pc.binary_join(pa.ListArray.from_arrays([0, len(there)], there), "")
        values = np.frombuffer(joined[0].as_buffer(), np.uint8)
    else:
        lengths, values = pc.list_value_length(array), _values(array.flatten())
    counts = lengths.fill_null(0).to_numpy().astype(np.int64)
    starts = np.cumsum(counts) - counts
    weights = np.random.default_rng(_WEIGHTS_SEED).integers(
        0, 2**64, int(counts.max(initial=0)), np.uint64, endpoint=False
    )
    sums = np.zeros(len(counts), np.uint64)
    for length in np.unique(counts):  # few, mostly one
        rows, own = np.flatnonzero(counts == length), weights[:length] | 1
        if len(rows) == len(counts):
            each = values.reshape(len(rows), length)
        else:
            each = values[starts[rows, None] + np.arange(length)]
        sums[rows] = each.astype(np.uint64) @ own + (own * _ODD).sum()
    return _mixed(sums + counts.astype(np.uint64) + _NULL)


def _values(array: Any) -> Hashes:  # noqa: ANN401 - as above
    """Of a list: numbers by their bits, which is cheaper for maps; anything else by its hash."""
    if not pa.types.is_primitive(array.type):
        return _hashes(array)
    values = _bits(array)
    if array.null_count:
        values[array.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return values


def _bits(array: Any) -> Hashes:  # noqa: ANN401 - as above
    """Fixed-size values as unsigned numbers, bit by bit; nulls as 0."""
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if pa.types.is_float16(array.type):  # pyarrow cannot fill their nulls
        array = array.view(pa.uint16())
    values = array.to_numpy() if not array.null_count else pc.fill_null(array, 0).to_numpy()
    return values.view(_BITS[values.dtype.itemsize]).astype(np.uint64)


def _mixed(values: Hashes) -> Hashes:
    """Every bit depends on every other (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
