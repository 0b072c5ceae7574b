"""Hashes of one image, by which its copies are found: exact pixels, and two perceptual hashes."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from PIL import Image

from braintumor_ray.errors import UsageError
from braintumor_ray.types import GrayImage


def pack_bits(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Packs 256 bits of any shape into uint64 (4,): bit i is bit i % 64 of word i // 64."""
    return np.packbits(bits.ravel(), bitorder="little").view("<u8").astype(np.uint64)


FLAT_STD = 2.0


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
    """Difference hash (dHash) of 16x16 bits: is a pixel brighter than its left neighbor?

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
    The criterion is a standard deviation below 2 gray levels of the 17x16 thumbnail.

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


def _thumbnail(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    _require_gray(gray)
    image = Image.fromarray(np.ascontiguousarray(gray))
    return np.asarray(image.resize((17, 16), Image.Resampling.LANCZOS))


def _require_gray(gray: NDArray[np.uint8]) -> None:
    if gray.ndim != 2 or gray.dtype != np.uint8 or gray.size == 0:
        raise UsageError(
            f"image of shape {gray.shape}, {gray.dtype}, is not uint8 (H, W); decode to gray first"
        )


Hashes = npt.NDArray[np.uint64]
HASHES = "hashes"  # the column of a catalog that holds what `pack_hashes` makes
PACKED_BYTES = 65


def pack_hashes(gray: GrayImage) -> bytes:
    """Pack difference hash (32 bytes), DCT hash (32 bytes), and 1 byte: is the image flat?"""
    found = fingerprint(gray)
    return found.dhash.tobytes() + found.dct_hash.tobytes() + bytes([found.flat])


def unpack_hashes(packed: Sequence[bytes | None]) -> tuple[Hashes, Hashes, npt.NDArray[np.bool_]]:
    """Difference and DCT hashes uint64 (n, 4), and flat bool (n,); zeros and flat where None."""
    blank = bytes(64) + b"\x01"
    content = b"".join(p or blank for p in packed)
    rows = np.frombuffer(content, np.uint8).reshape(-1, PACKED_BYTES)
    dhashes, dct_hashes = (
        np.ascontiguousarray(rows[:, part]).view(np.uint64)
        for part in (slice(0, 32), slice(32, 64))
    )
    return dhashes, dct_hashes, rows[:, 64].astype(bool)
