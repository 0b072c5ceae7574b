"""Files that an archive should not hold but does: unreadable ones and copies across splits."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from braintumor_ray.phantom.lesion import CLASS_NAMES
from braintumor_ray.phantom.slices import draw_slice

OVERSIZED_SIDE = 60_000  # 3.6 gigapixels: beyond the limits of Pillow and OpenCV
_COPY_QUALITY = 92  # JPEG quality of the re-encoded copy: other bytes, other pixels, same scan
_ROWS_PER_BLOCK = 1_000


@dataclass(frozen=True)
class Planted:
    """One planted file: path below `scans/`, what is wrong, and the original of a copy."""

    path: str
    kind: str
    source: str = ""


def plant_bad_files(scans: Path, seed: int) -> list[Planted]:
    """Write five files that are no usable image, spread over the class folders of `scans`."""
    whole = draw_slice((seed, 0), CLASS_NAMES[0], 0.5).image
    jpeg = encode(".jpg", whole, 90)
    files = {
        f"Training/{CLASS_NAMES[0]}/corrupt.jpg": ("corrupt", _corrupt_jpeg(seed)),
        f"Training/{CLASS_NAMES[1]}/truncated.jpg": ("truncated", jpeg[: len(jpeg) // 2]),
        f"Training/{CLASS_NAMES[2]}/empty.png": ("empty", b""),
        f"Training/{CLASS_NAMES[3]}/oversized.png": ("oversized", oversized_png()),
        f"Testing/{CLASS_NAMES[3]}/text.jpg": ("text", b"This file is text, not a picture.\n"),
    }
    for path, (_, content) in files.items():
        write_file(scans / path, content)
    return [Planted(path, kind) for path, (kind, _) in files.items()]


def plant_duplicates(scans: Path, originals: list[str]) -> list[Planted]:
    """Copy Training scans into Testing: the first byte for byte, the second re-encoded as JPEG.

    Args:
        scans: Folder that holds Training and Testing.
        originals: Two paths below `scans`, each starting with "Training/".
    """
    same, changed = originals[:2]
    pixels = cv2.imread(str(scans / changed), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None, f"{changed} was written a moment ago"
    encoded = encode(".jpg", pixels.astype(np.uint8), _COPY_QUALITY)
    copies = (
        (same, Path(same).suffix, "duplicate-bytes", (scans / same).read_bytes()),
        (changed, ".jpg", "duplicate-reencoded", encoded),
    )
    planted = []
    for original, suffix, kind, content in copies:
        source = Path(original)
        path = f"Testing/{source.parent.name}/copy_{source.stem}{suffix}"
        write_file(scans / path, content)
        planted.append(Planted(path, kind, original))
    return planted


def write_file(path: Path, content: bytes) -> None:
    """Write a file, its folder too where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def encode(suffix: str, image: npt.NDArray[np.uint8], quality: int = 90) -> bytes:
    """Encode a uint8 (H, W) or (H, W, 3) image as ".jpg" (at `quality`) or ".png"."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    written, buffer = cv2.imencode(suffix, image, options)
    assert written, f"OpenCV could not encode {suffix}"
    return buffer.tobytes()


def _corrupt_jpeg(seed: int) -> bytes:
    """A JFIF header, then random bytes."""
    header = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    return header + np.random.default_rng(np.random.SeedSequence((seed, 0xBAD))).bytes(4096)


def oversized_png(side: int = OVERSIZED_SIDE) -> bytes:
    """A valid all-black 1-bit PNG of `side` x `side`, built without holding its pixels.

    At 60,000 the 450 MB of rows become about 440 KB. One block of rows is compressed once, ended
    by a full flush (RFC 1950, 1951: the next block does not depend on it) and repeated. Adler-32
    of n zero bytes has a closed form: n mod 65521 in the high half, 1 in the low half.
    """
    row = 1 + (side + 7) // 8  # filter byte and packed pixels
    blocks, rest = divmod(side, _ROWS_PER_BLOCK)
    checksum = ((side * row) % 65521) << 16 | 1
    data = b"\x78\xda" + _zeros(row * _ROWS_PER_BLOCK) * blocks + _zeros(row * rest)
    data += b"\x03\x00" + struct.pack(">I", checksum)  # an empty last block
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _zeros(count: int) -> bytes:
    """`count` zero bytes as raw deflate blocks that others may follow."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(count)) + packer.flush(zlib.Z_FULL_FLUSH)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
