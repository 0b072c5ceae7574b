"""Finds copies of one image: exact pixels by SHA-256, near copies by two 256-bit hashes.

The difference hash at Hamming distance 6 is strict. It misses many copies that were darkened or
strongly recompressed, because noise flips its bits in the black background; the DCT hash at
distance 12 finds those. Copies that were cropped, rotated or mirrored are found by neither.
"""

import hashlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from braintumor_ray.data.hamming import (
    CROWD,
    HASH_BITS,
    HASH_WORDS,
    BandSearch,
    bits_set,
    pack_bits,
)
from braintumor_ray.errors import UsageError

DHASH_DISTANCE = 6
DCT_DISTANCE = 12
FLAT_STD = 2.0
MIN_BITS_SET = 16


class Fingerprint(NamedTuple):
    """What is kept of an image to find its copies.

    Attributes:
        pixel_sha256: Hex digest, see `pixel_sha256`.
        dhash: uint64 (4,), see `difference_hash`.
        dct_hash: uint64 (4,), see `dct_hash`.
        flat: True where the hashes carry no information, see `is_flat`.
    """

    pixel_sha256: str
    dhash: NDArray[np.uint64]
    dct_hash: NDArray[np.uint64]
    flat: bool


def pixel_sha256(gray: NDArray[np.uint8]) -> str:
    """Hashes the pixels of an image at full size.

    Layout: height and width as two little-endian int64, then the pixels row by row (C order),
    one byte each. The shape is part of it, so a 2x8 and a 4x4 image never agree.

    Args:
        gray: uint8 (H, W), 0 to 255.

    Returns:
        SHA-256 as 64 lower-case hexadecimal digits.

    Raises:
        UsageError: `gray` is not a two-dimensional uint8 array with pixels.
    """
    _require_gray(gray)
    digest = hashlib.sha256(np.array(gray.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(gray).data)
    return digest.hexdigest()


def difference_hash(gray: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Difference hash (dHash) of 16x16 bits: is a pixel brighter than its left neighbour?

    The image is shrunk to 17 wide, 16 high with Pillow's Lanczos filter, as the imagehash
    package does, so that distances are comparable with published counts.
    Source: N. Krawetz, "Kind of Like That" (2013).

    Args:
        gray: uint8 (H, W), 0 to 255.

    Returns:
        uint64 (4,): bit i (row-major) is bit i % 64 of word i // 64.

    Raises:
        UsageError: `gray` is not a two-dimensional uint8 array with pixels.
    """
    thumbnail = _thumbnail(gray)
    return pack_bits(thumbnail[:, 1:] > thumbnail[:, :-1])


def dct_hash(gray: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Signs of the 16x16 lowest frequencies of the image shrunk to 64x64.

    A change of brightness or contrast leaves the signs alone but for clipping, and noise in a
    black background hardly reaches low frequencies. The constant term's bit is always 0.
    Source: C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010),
    with 16x16 coefficients instead of 8x8 (8x8 confuses brains) and the sign instead of the median.

    Args:
        gray: uint8 (H, W), 0 to 255.

    Returns:
        uint64 (4,), bits as in `difference_hash`.

    Raises:
        UsageError: `gray` is not a two-dimensional uint8 array with pixels.
    """
    _require_gray(gray)
    small = cv2.resize(gray.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small)[:16, :16]
    low[0, 0] = 0
    return pack_bits(low > 0)


def is_flat(gray: NDArray[np.uint8]) -> bool:
    """True for images without structure (blank, or noise only).

    Their hashes are decided by rounding, so they would join with images they do not resemble.
    The criterion is a standard deviation below 2 grey levels of the 17x16 thumbnail.

    Args:
        gray: uint8 (H, W), 0 to 255.

    Raises:
        UsageError: `gray` is not a two-dimensional uint8 array with pixels.
    """
    return bool(_thumbnail(gray).std() < FLAT_STD)


def fingerprint(gray: NDArray[np.uint8]) -> Fingerprint:
    """Computes everything that the search for copies needs from one image.

    Args:
        gray: uint8 (H, W), 0 to 255.

    Raises:
        UsageError: `gray` is not a two-dimensional uint8 array with pixels.
    """
    return Fingerprint(pixel_sha256(gray), difference_hash(gray), dct_hash(gray), is_flat(gray))


def near_duplicate_pairs(
    hashes: NDArray[np.uint64], max_distance: int = DHASH_DISTANCE, *, crowd: int = CROWD
) -> NDArray[np.int64]:
    """Finds rows whose hashes differ in at most `max_distance` bits, without all pairs.

    The 256 bits are dealt out over `max_distance` + 1 bands (at least 4), so that a pair within
    the distance agrees exactly in one band (pigeonhole); rows that agree in a band are verified.
    Each band takes bits from all over the image: neighbouring bits are alike in most scans, the
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
    rank = np.argsort(np.argsort(first))
    return rank[inverse].astype(np.int64)


def _informative(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Two hashes with 3 bits set are always within distance 6, whatever they show."""
    weight = bits_set(hashes)
    return (weight >= MIN_BITS_SET) & (weight <= HASH_BITS - MIN_BITS_SET)


def _sorted_pairs(found: list[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    pairs = np.sort(np.concatenate(found), axis=1)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    codes = np.unique(pairs[:, 0] * n + pairs[:, 1])
    return np.stack([codes // n, codes % n], axis=1)


def _thumbnail(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    _require_gray(gray)
    image = Image.fromarray(np.ascontiguousarray(gray))
    return np.asarray(image.resize((17, 16), Image.Resampling.LANCZOS))


def _require_gray(gray: NDArray[np.uint8]) -> None:
    if gray.ndim != 2 or gray.dtype != np.uint8 or gray.size == 0:
        raise UsageError(
            f"image of shape {gray.shape}, {gray.dtype}, is not uint8 (H, W); decode to gray first"
        )


def _require_rows(name: str, length: int, n: int) -> None:
    if length != n:
        raise UsageError(f"{name} has {length} rows for {n} scans; give one row per scan")
