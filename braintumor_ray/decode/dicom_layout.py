"""How the pixel data of a DICOM object lie: what the header says, made whole where it is silent.

Attributes that the standard asks for are missing, empty or contradict the data in real archives.
What follows from the length of the pixel data is derived from it.
"""

import math
import struct
from dataclasses import dataclass, replace

import pydicom
from pydicom.encaps import parse_basic_offsets, parse_fragments
from pydicom.uid import (
    JPEG2000,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from braintumor_ray.decode.dicom_tags import Tags
from braintumor_ray.decode.types import Unreadable

MOST_FRAMES = 65_535
UNDEFINED = 0xFFFFFFFF
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
GRAY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
COLORS = (
    "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT",
    "YBR_PARTIAL_420", "YBR_PARTIAL_422",
)  # fmt: skip
_ALLOCATED = (1, 8, 16, 32, 64)
_FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
_SOF = {0xC0: JPEGBaseline8Bit, 0xC1: JPEGExtended12Bit, 0xC3: JPEGLosslessSV1}
_SOF[0xF7] = JPEGLSLossless


@dataclass(frozen=True)
class PixelElement:
    """The element that holds the pixels.

    Attributes:
        keyword: one of `PIXEL_KEYWORDS`.
        length: bytes, or `UNDEFINED` where fragments follow.
        value: what is there of it; may be empty where `length` is known.
        whole: whether all of it is there.
    """

    keyword: str
    length: int
    value: bytes = b""
    whole: bool = True


@dataclass(frozen=True)
class PixelLayout:
    """Size and encoding of the frames; attributes as in PS3.3, C.7.6.3.

    Attributes:
        columns, rows: of one frame.
        frames: in the object.
        samples: 1 or 3 per pixel.
        photometric: one of `GRAY` or `COLORS`.
        allocated, stored, high: bits of a sample, those in use, and the highest of them.
        signed: whether samples are two's complement.
        planar: whether colors lie plane by plane.
        keyword: of the pixel data.
        tiles: slices of a Siemens mosaic, in as square a grid as they fit; 0 where it is none.
    """

    columns: int
    rows: int
    frames: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: bool
    keyword: str
    tiles: int = 0

    @property
    def mode(self) -> str:
        """Such as 'MONOCHROME2 12-bit'."""
        kind = "" if self.keyword == "PixelData" else " float"
        return f"{self.photometric} {self.stored}-bit{kind}"

    @property
    def grid(self) -> int:
        """Slices along each side of a mosaic; 1 where it is none."""
        return math.isqrt(self.tiles - 1) + 1 if self.tiles else 1

    def native_bytes(self, frames: int) -> int:
        """Bytes of so many uncompressed frames."""
        samples = self.rows * self.columns * self.samples
        if self.photometric == "YBR_FULL_422":
            samples = samples // 3 * 2
        return math.ceil(samples * frames * self.allocated / 8)


def layout_of(tags: Tags, pixels: PixelElement, compressed: bool) -> PixelLayout:
    """The layout, from the header and the length of the pixel data.

    Raises:
        Unreadable: no size, or a kind of sample that nothing here can read.
    """
    rows, columns = (tags.whole(key, 1, 65_535) for key in ("Rows", "Columns"))
    if rows is None or columns is None:
        raise Unreadable("damaged DICOM: no usable number of rows and columns")
    photometric, samples = _color(tags)
    declared = tags.whole("NumberOfFrames", 1, MOST_FRAMES)
    per_sample = pixels.length / (rows * columns * samples * (declared or 1))
    allocated = _allocated(tags, pixels.keyword, None if compressed else per_sample)
    stored = tags.whole("BitsStored", 1, allocated) or allocated
    if pixels.keyword in _FLOATS:
        stored = allocated
    found = PixelLayout(
        columns=columns,
        rows=rows,
        frames=declared or 1,
        samples=samples,
        photometric=photometric,
        allocated=allocated,
        stored=stored,
        high=tags.whole("HighBit", stored - 1, allocated - 1) or stored - 1,
        signed=tags.whole("PixelRepresentation", 0, 1) == 1,
        # Compressed colors lie as their codec has them, whatever is left in the header.
        planar=not compressed and tags.whole("PlanarConfiguration", 0, 1) == 1,
        keyword=pixels.keyword,
    )
    if declared is None:
        wanted = bool(tags.text("NumberOfFrames"))
        counted = _counted(pixels, wanted) if compressed else _fitting(pixels, found)
        found = replace(found, frames=counted)
    return found


def syntax_of_fragments(value: bytes) -> pydicom.uid.UID | None:
    """The transfer syntax that compressed pixel data are in, by their first fragment."""
    first = _fragment_starts(value)[:1]
    if not first:
        return None
    start = value[first[0] :]
    if start.startswith(b"\xff\x4f\xff\x51"):
        return JPEG2000
    if start.startswith(b"\xff\xd8"):
        return _syntax_of_jpeg(start)
    return RLELossless if start[4:8] == b"\x40\0\0\0" and 1 <= start[0] <= 15 else None


def _color(tags: Tags) -> tuple[str, int]:
    """Photometric interpretation and samples per pixel that agree with each other."""
    named = tags.text("PhotometricInterpretation").upper()
    samples = tags.whole("SamplesPerPixel", 1, 4)
    if samples not in (None, 1, 3):
        raise Unreadable("DICOM of neither one nor three samples per pixel is not readable here")
    if named and named not in (*GRAY, *COLORS):
        tags.unread.add("PhotometricInterpretation")
    samples = samples or (3 if named in COLORS else 1)
    if samples == 1:
        return (named if named in GRAY else "MONOCHROME2"), 1
    return (named if named in COLORS else "RGB"), 3


def _allocated(tags: Tags, keyword: str, bytes_per_sample: float | None) -> int:
    if keyword in _FLOATS:
        return _FLOATS[keyword]
    bits = tags.whole("BitsAllocated", 1, 64)
    fitting = [n for n in _ALLOCATED[1:] if bytes_per_sample and 8 * bytes_per_sample == n]
    contradicted = fitting and (tags.number("BitsStored") or 0) > (bits or 0)
    if bits in _ALLOCATED and not contradicted:
        return int(bits)
    if fitting:
        return fitting[0]
    if bits is not None:
        raise Unreadable("DICOM whose samples are not 1, 8, 16, 32 or 64 bits is not readable here")
    stored = tags.whole("BitsStored", 1, 64) or 16
    return next(n for n in _ALLOCATED[1:] if n >= stored)


def _fitting(pixels: PixelElement, layout: PixelLayout) -> int:
    """Frames of uncompressed data whose number the header lacks: as many as fill them exactly."""
    each = layout.native_bytes(1)
    count, rest = divmod(pixels.length, each)
    exact = rest == 0 or (rest == 1 and count * each % 2 == 1)  # padded to an even length
    return count if exact and 1 <= count <= MOST_FRAMES else 1


def _counted(pixels: PixelElement, wanted: bool) -> int:
    """Frames of compressed data whose number the header lacks.

    The table at their beginning lists them; without it, and where a number was there that could
    not be parsed, the fragments are counted that begin an image.
    """
    try:
        listed = len(parse_basic_offsets(pixels.value))
    except (ValueError, EOFError, struct.error):  # not wholly there
        listed = 0
    if listed or not wanted:
        return max(1, min(listed, MOST_FRAMES))
    starts = _fragment_starts(pixels.value) if pixels.whole else []
    if not starts:
        raise Unreadable("damaged DICOM: its frames cannot be counted")
    marks = [pixels.value[at : at + 3] for at in starts]
    begun = sum(mark in (b"\xff\xd8\xff", b"\xff\x4f\xff") for mark in marks)
    return min(begun or len(starts), MOST_FRAMES)


def _fragment_starts(value: bytes) -> list[int]:
    """Where the fragments' bytes begin, without the table; empty where they cannot be parsed."""
    try:
        items = parse_fragments(value)[1]
    except (ValueError, EOFError, struct.error):
        return []
    return [offset + 8 for offset in items[1:]]


def _syntax_of_jpeg(data: bytes) -> pydicom.uid.UID | None:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _SOF:
            return _SOF[data[at + 1]]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
