"""Searches 256-bit hashes for pairs within a Hamming distance, without all pairs."""

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.decode.hashes import pack_bits

HASH_BITS = 256
HASH_WORDS = 4
CROWD = 256
MAX_DEPTH = 3
CHUNK_ROWS = 65_536


class BandSearch:
    """Banded search for near hashes.

    The bits are divided into `distance` + 1 bands (at least 4), so that a pair within the distance
    agrees exactly in one band (pigeonhole); rows that agree in a band are verified.

    Args:
        hashes: uint64 (n, 4).
        distance: Largest Hamming distance, 0 to 63.
        crowd: Rows that may agree in a band before their pairs are not all verified.
    """

    def __init__(self, hashes: NDArray[np.uint64], distance: int, crowd: int = CROWD) -> None:
        self.hashes = hashes
        self.distance = distance
        self.crowd = crowd
        self._found: list[NDArray[np.int64]] = []

    def run(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Finds near pairs among `rows`, whose hashes must be distinct.

        Returns:
            Arrays int64 (m, 2) of row numbers, in no order; a pair may occur several times and
            a row may be paired with itself.
        """
        self._found = []
        # 97 is odd, so this permutes the bits. Neighboring bits of an image hash are alike (the
        # black background above all): a band takes each next bit 6 rows and a column further on.
        spread = np.arange(HASH_BITS) * 97 % HASH_BITS
        if len(rows):
            self._search(rows, spread, MAX_DEPTH)
        return self._found

    def _search(self, rows: NDArray[np.int64], bits: NDArray[np.int64], depth: int) -> None:
        for band in np.array_split(bits, max(self.distance + 1, 4)):
            keys = _band_keys(self.hashes, rows, band)
            order = np.argsort(keys, kind="stable")
            starts, sizes = _runs(keys[order])
            crowded = (sizes > self.crowd) & (depth > 0)
            self._verify_runs(rows[order], starts[~crowded], sizes[~crowded])
            rest = bits[~np.isin(bits, band)]
            for start, size in zip(starts[crowded], sizes[crowded], strict=True):
                self._search_crowd(rows[order[start : start + size]], rest, depth - 1)

    def _verify_runs(
        self, rows: NDArray[np.int64], starts: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> None:
        """Compares each row with those 1, 2, 3, ... places further in its run."""
        ends = np.repeat(starts + sizes, sizes)
        places = np.arange(len(ends)) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
        step = 1
        while len(places := places[(inside := places + step < ends)]):
            ends = ends[inside]
            self._keep(rows[places], rows[places + step])
            step += 1

    def _search_crowd(self, rows: NDArray[np.int64], bits: NDArray[np.int64], depth: int) -> None:
        """Ties a dense cluster to its center, so that its pairs need not all be listed."""
        center = rows[np.argmin(hamming_distances(self.hashes[rows], _majority(self.hashes[rows])))]
        near = hamming_distances(self.hashes[rows], self.hashes[center]) <= self.distance
        self._keep(np.full(near.sum(), center), rows[near])
        far = rows[~near]
        if len(far) > self.crowd:
            self._search(rows, bits, depth)
            return
        for row in far:
            self._keep(np.full(len(rows), row), rows)

    def _keep(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        near = hamming_distances(self.hashes[left], self.hashes[right]) <= self.distance
        self._found.append(np.stack([left[near], right[near]], axis=1))


def _runs(ordered: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and sizes of the runs of equal values."""
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return starts, np.diff(starts, append=len(ordered))


def _band_keys(
    hashes: NDArray[np.uint64], rows: NDArray[np.int64], band: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Gathers up to 64 chosen bits of each row into one uint64."""
    keys = np.zeros((len(rows), 8), dtype=np.uint8)
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = hashes[rows[start : start + CHUNK_ROWS]]
        packed = np.packbits(unpack_bits(chunk)[:, band], axis=1)
        keys[start : start + CHUNK_ROWS, : packed.shape[1]] = packed
    return keys.view(np.uint64)[:, 0]


def hamming_distances(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Hamming distances int64 (n,) between rows of uint64 (n, 4), or with one (4,)."""
    return bits_set(left ^ right)


def bits_set(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of bits set in each row of uint64 (n, w), as int64 (n,).

    Source: H. S. Warren, Hacker's Delight, 5-1; numpy 1 has no `bitwise_count`.
    """
    x = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    low = np.uint64(0x3333333333333333)
    x = (x & low) + ((x >> np.uint64(2)) & low)
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    counts = (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return counts.sum(axis=-1).astype(np.int64)


def _majority(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return pack_bits(unpack_bits(hashes).mean(axis=0) > 0.5)


def unpack_bits(hashes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Unpacks uint64 (n, 4) into 0 and 1, uint8 (n, 256), in the order of `pack_bits`."""
    octets = np.ascontiguousarray(hashes.astype("<u8")).view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little")
