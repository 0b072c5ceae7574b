"""JPEG: gray pixels by the shortest way through Pillow, and files that lost pixel data."""

import io
import re
import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from braintumor_ray.decode.types import DecodeLimits, Gray, Unreadable

_EOI, _SOI, _SOS = 0xD9, 0xD8, 0xDA
# A marker, or a fill byte before one: neither a stuffed byte nor a restart (T.81, table B.1).
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)
_FILL = 0xFF
_TEM = 0x01  # the one marker of the others that has no segment
# Entropy-coded bits that no decoder skips; holds no 0xFF, so no marker can arise.
_PADDING = bytes((0x55, 0xA3, 0x1C, 0x72)) * 16
_SOF = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_ALL_SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # also lossless, and JPEG-LS
# Differential, lossless with arithmetic coding, JPEG-LS: libjpeg has no decoder of them.
_FOREIGN_SOF = {0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_SOC_SIZ = b"\xff\x4f\xff\x51"  # how a JPEG 2000 codestream begins
_COD, _SOT = b"\xff\x52", b"\xff\x90"  # its coding style; its first tile
_SIZ_BYTES = 43  # to the depth of its first component
_DQT = 0xDB
_JFIF, _ADOBE = 0xE0, 0xEE
# DHT, DRI, comments, and notes of applications that Pillow does not read. Not those of EXIF and
# XMP (they may turn the picture), of color profiles and of Photoshop.
_PASSED_OVER = {0xC4, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF}
_MODES = {1: "L", 3: "RGB"}
_QUANTIZATION = 65  # bytes of a table of 8 bits


def plain_gray(data: bytes, limits: DecodeLimits) -> tuple[Gray, str] | None:
    """Gray pixels and mode of an ordinary JPEG, exactly as Pillow's image object gives them.

    Pillow's decoder writes into NumPy's memory: without the image object and its copies this takes
    half the time. None where anything is unusual or wrong; the image object knows what it is.

    Raises:
        Unreadable: too many pixels.
    """
    header = _plain_header(data)
    if header is None:
        return None
    width, height, mode = header
    limits.check_pixels(width, height)
    gray = np.empty((height, width), np.uint8)
    image = Image.frombuffer("L", (width, height), gray, "raw", "L", 0, 1)
    try:
        # As after `draft("L")`: stored as JPEG's default, at full size.
        image.frombytes(data, "jpeg", "L", "", 1, 0)
    except (OSError, ValueError):  # data end early, or cannot be decoded
        return None
    return gray, mode


def _plain_header(data: bytes) -> tuple[int, int, str] | None:
    """Width, height and mode; None where a segment is not as every writer makes it."""
    at, found = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, start = data[at + 1], at + 4
        at += 2 + int.from_bytes(data[at + 2 : start], "big")
        if at < start or at > len(data):
            return None
        if marker == _SOS:
            return found
        if marker in _SOF and found is None:
            found = _frame(data[start:at])
            if found is None:
                return None
        elif not _is_usual(marker, data[start:at]):
            return None
    return None


def _frame(segment: bytes) -> tuple[int, int, str] | None:
    """Width, height and mode of a frame header (T.81, B.2.2)."""
    if len(segment) < 6 or segment[0] != 8 or segment[5] not in _MODES:
        return None
    height, width = (int.from_bytes(segment[at : at + 2], "big") for at in (1, 3))
    if len(segment) != 6 + 3 * segment[5] or not height or not width:
        return None
    return width, height, _MODES[segment[5]]


def _is_usual(marker: int, segment: bytes) -> bool:
    if marker in _PASSED_OVER:
        return True
    if marker in (_JFIF, _ADOBE):
        return len(segment) >= 12
    whole = len(segment) % _QUANTIZATION == 0
    return marker == _DQT and whole and max(segment[::_QUANTIZATION], default=0) < 16


def check_end(data: bytes, stored: Gray) -> None:
    """Find JPEGs that lost pixel data but still end in a way that libjpeg accepts.

    libjpeg fills blocks that it has no data for with flat gray 128 and only warns, which Pillow
    does not show. So where the last pixel is 128, decode again with more entropy-coded data before
    the end marker: only an image that lacked data takes it up and changes.

    Raises:
        Unreadable: data are missing.
    """
    end = _end(data)
    if stored[-1, -1] != 128:
        return
    image = JpegImageFile(io.BytesIO(data[:end] + _PADDING + data[end:]))
    image.draft("L", None)
    if not np.array_equal(np.asarray(image.convert("L")), stored):
        raise Unreadable("truncated JPEG: ends before the last scan is complete")


def check_frame_end(data: bytes, samples: npt.NDArray[Any]) -> None:
    """As `check_end`, of a frame (H, W) or (H, W, 3) that another decoder gave.

    Raises:
        Unreadable: data are missing.
    """
    _end(data)
    if (samples[-1, -1] != 128).any():
        return
    try:
        image = JpegImageFile(io.BytesIO(data))
        image.draft("L", None)
        stored = np.asarray(image.convert("L"))
    except (OSError, SyntaxError):  # of a kind that Pillow does not read, such as 12 bits
        return
    check_end(data, stored)


class Stated(NamedTuple):
    """What the header of a codestream says of its picture.

    Attributes:
        bits: of a sample.
        transformed: of JPEG 2000: whoever decodes it gets red, green and blue.
    """

    width: int
    height: int
    samples: int
    bits: int
    transformed: bool = False


def stated(data: bytes) -> Stated | None:
    """The header of a JPEG, JPEG-LS or JPEG 2000 codestream, None without one.

    Reads SOF (T.81, B.2.2; T.87, C.2.2) or SIZ and COD (T.800, A.5.1 and A.6.1).
    """
    if data.startswith(_SOC_SIZ):
        right, bottom, left, top = struct.unpack_from(">4I", data.ljust(_SIZ_BYTES, b"\0"), 8)
        samples, depth = struct.unpack_from(">HB", data.ljust(_SIZ_BYTES, b"\0"), 40)
        # Of less than three components decoders skip it, and so gray pixels stay gray.
        transformed = samples >= 3 and _has_component_transform(data)
        return Stated(right - left, bottom - top, samples, (depth & 0x7F) + 1, transformed)
    at = _frame_header(data)
    if at is None:
        return None
    bits, height, width, samples = struct.unpack_from(">BHHB", data, at + 4)
    # Where it has no height, that follows the pixels (DNL).
    return Stated(width, height, samples, bits) if height else None


def is_foreign(data: bytes) -> bool:
    """Whether a JPEG is of a kind that Pillow never reads, such as JPEG-LS."""
    at = _frame_header(data)
    return at is not None and data[at + 1] in _FOREIGN_SOF


def _frame_header(data: bytes) -> int | None:
    """Where the first frame header is; None without one."""
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _FILL:
            at += 1
        elif marker in _ALL_SOF:
            return at
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _has_component_transform(data: bytes) -> bool:
    at = 2
    while at + 9 <= len(data) and data[at : at + 2] != _SOT:
        if data[at : at + 2] == _COD:
            return data[at + 8] == 1
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _end(data: bytes) -> int:
    """Where the end marker of the first picture is, by walking its markers (T.81, B.1).

    What follows it (a trailer, further pictures of an MPO) is not looked at, and neither is what
    lies inside of segments, such as a thumbnail.

    Raises:
        Unreadable: there is none before the data end, or another picture begins.
    """
    at = 2
    while found := _MARKER.search(data, at):
        at = found.end()
        marker = data[at - 1]
        if marker == _EOI:
            return at - 2
        if marker == _SOI:
            raise Unreadable("truncated JPEG: another picture begins before its end")
        if marker == _FILL:
            at -= 1
        elif marker != _TEM:
            at += data[at] << 8 | data[at + 1] if at + 1 < len(data) else 0
    raise Unreadable("truncated JPEG: no end marker after the last scan")
