"""Finds copies of one image: exact pixels by SHA-256, near copies by two 256-bit hashes.

The difference hash at Hamming distance 6 is strict. It misses many copies that were darkened or
strongly recompressed, because noise flips its bits in the black background; the DCT hash at
distance 12 finds those. Copies that were cropped, rotated or mirrored are found by neither.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from braintumor_ray.decode.hashes import unpack_hashes
from braintumor_ray.errors import UsageError
from braintumor_ray.splits.hamming import CROWD, HASH_BITS, HASH_WORDS, BandSearch, bits_set

DHASH_DISTANCE = 6
DCT_DISTANCE = 12
MIN_BITS_SET = 16


def near_duplicate_pairs(
    hashes: NDArray[np.uint64], max_distance: int = DHASH_DISTANCE, *, crowd: int = CROWD
) -> NDArray[np.int64]:
    """Finds rows whose hashes differ in at most `max_distance` bits, without all pairs.

    The 256 bits are divided into `max_distance` + 1 bands (at least 4), so that a pair within the
    distance agrees exactly in one band (pigeonhole); rows that agree in a band are verified.
    Each band takes bits from all over the image: neighboring bits are alike in most scans, the
    black background above all. Identical hashes are collapsed first. Where more than `crowd`
    distinct hashes agree in a band, those near the bucket's majority hash are tied to one of them,
    and if more than `crowd` others are left, the bucket is banded again on its remaining bits
    (three times at most; after that its pairs are all verified).

    Args:
        hashes: uint64 (n, 4).
        max_distance: Largest Hamming distance, 0 to 63.
        crowd: Distinct hashes that may agree in a band before it counts as crowded.

    Returns:
        int64 (m, 2), first < second, sorted, each pair once and truly within the distance. Copies
        of one hash are paired with its first row only. Among distinct hashes every pair is given,
        but for crowded buckets, where as many as it takes to connect the same rows.

    Raises:
        UsageError: `hashes` has another shape, or `max_distance` is out of range.
    """
    hashes = np.asarray(hashes, dtype=np.uint64)
    if hashes.ndim != 2 or hashes.shape[1] != HASH_WORDS:
        raise UsageError(f"hashes of shape {hashes.shape} are not (n, 4); stack difference hashes")
    if not 0 <= max_distance < 64:
        raise UsageError(f"max_distance {max_distance} is not within 0 to 63; try 6")
    if len(hashes) == 0:
        return np.empty((0, 2), dtype=np.int64)
    first = first_with_same_value([row.tobytes() for row in hashes])
    rows = np.flatnonzero(first == np.arange(len(hashes)))
    found = [np.stack([first, np.arange(len(hashes))], axis=1)]
    found += BandSearch(hashes, max_distance, crowd).run(rows)
    return _sorted_pairs(found, len(hashes))


def duplicate_groups(
    pixel_hashes: Sequence[str | None],
    dhashes: NDArray[np.uint64] | None,
    max_distance: int = DHASH_DISTANCE,
    *,
    flat: NDArray[np.bool_] | None = None,
    dct_hashes: NDArray[np.uint64] | None = None,
    dct_distance: int = DCT_DISTANCE,
) -> NDArray[np.int64]:
    """Numbers the groups of images that are exact or near copies of one another.

    Flat images, and hashes with fewer than 16 bits set or unset, join by exact pixels only.
    Joining is transitive. Give `dct_hashes` as well to find brightened and darkened copies.

    Args:
        pixel_hashes: n digests from `pixel_sha256`; None for a scan that could not be decoded,
            which gets a group of its own.
        dhashes: uint64 (n, 4) from `difference_hash`, or None to join by pixels alone. Rows
            without a pixel hash are not looked at.
        max_distance: Largest Hamming distance between difference hashes of near copies.
        flat: bool (n,) from `is_flat`; None takes no image for flat.
        dct_hashes: uint64 (n, 4) from `dct_hash`, or None to do without.
        dct_distance: Largest Hamming distance between DCT hashes of near copies.

    Returns:
        int64 (n,), 0 to g - 1, numbered in order of first appearance.

    Raises:
        UsageError: lengths or shapes differ, or a distance is out of range.
    """
    n = len(pixel_hashes)
    comparable = np.array([digest is not None for digest in pixel_hashes], dtype=bool)
    if flat is not None:
        _require_rows("flat", len(flat), n)
        comparable &= ~np.asarray(flat, dtype=bool)
    edges = [np.stack([first_with_same_value(pixel_hashes), np.arange(n)], axis=1)]
    for name, hashes, distance in (
        ("dhashes", dhashes, max_distance),
        ("dct_hashes", dct_hashes, dct_distance),
    ):
        if hashes is not None:
            _require_rows(name, len(hashes), n)
            rows = np.flatnonzero(comparable & _informative(hashes))
            edges.append(rows[near_duplicate_pairs(hashes[rows], distance)])
    return connected_rows(n, np.concatenate(edges))


def image_groups(
    pixel_hashes: Sequence[str | None], packed: Sequence[bytes | None]
) -> NDArray[np.int64]:
    """`duplicate_groups` of scans with the perceptual hashes of `decode.hashes.pack_hashes`."""
    dhashes, dct_hashes, flat = unpack_hashes(packed)
    return duplicate_groups(pixel_hashes, dhashes, flat=flat, dct_hashes=dct_hashes)


def first_with_same_value(values: Sequence[Hashable | None]) -> NDArray[np.int64]:
    """For each row the first row with the same value; None equals nothing but itself.

    Returns:
        int64 (n,).
    """
    seen: dict[Hashable, int] = {}
    return np.array(
        [row if value is None else seen.setdefault(value, row) for row, value in enumerate(values)],
        dtype=np.int64,
    )


def connected_rows(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers the connected components of `n` rows joined by `pairs`.

    Args:
        n: Number of rows.
        pairs: int64 (m, 2), row numbers.

    Returns:
        int64 (n,), 0 to g - 1, numbered in order of first appearance.
    """
    if n == 0:
        return np.empty(0, dtype=np.int64)
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), (n, n))
    _, labels = connected_components(graph, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # scipy's numbers follow no order that it promises
    return rank[inverse].astype(np.int64)


def _informative(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Enough bits set and unset: two hashes with 3 bits set are always within distance 6."""
    weight = bits_set(hashes)
    return (weight >= MIN_BITS_SET) & (weight <= HASH_BITS - MIN_BITS_SET)


def _sorted_pairs(found: list[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    pairs = np.sort(np.concatenate(found), axis=1)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    # A pair as one number: np.unique of rows sorts them as bytes, which is much slower.
    codes = np.unique(pairs[:, 0] * n + pairs[:, 1])
    return np.stack([codes // n, codes % n], axis=1)


def _require_rows(name: str, length: int, n: int) -> None:
    if length != n:
        raise UsageError(f"{name} has {length} rows for {n} scans; give one row per scan")
