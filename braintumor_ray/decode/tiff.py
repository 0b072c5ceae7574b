"""TIFF samples that Pillow does not know, or takes for others: told from the page's own tags.

Pillow takes signed bytes and 32-bit integers without sign for what they are not, and refuses
half and double floats, 64-bit integers and `undefined` samples as if the file were damaged. Here
such a page is found by its tags (TIFF 6.0; BigTIFF) and read under a name of the same width: the
bits are then seen as what they are. 64 bits and wide colors go through OpenCV.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.TiffImagePlugin import COMPRESSION_INFO, OPEN_INFO, TiffImageFile

from braintumor_ray.decode.types import DecodeLimits, Unreadable

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _FORMAT = 274, 277, 339
_JPEG = (6, 7)  # Compression
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # SampleFormat; 4 is undefined, which is bits as they are
_NAMES = {"u": "uint", "i": "int", "f": "float"}
_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}  # of the field types that counts and sizes come in
_MOST_PAGES = 65_535
_MOST_ENTRIES = 4_096
_MIN_IS_WHITE, _MIN_IS_BLACK, _PALETTE = 0, 1, 3
_LUMA_BGR = np.array([0.114, 0.587, 0.299])  # ITU-R BT.601
_MISTAKEN = ((2, 8), (1, 32))  # (SampleFormat, bits) that Pillow opens as another kind


@dataclass(frozen=True)
class Page:
    """One page (image file directory) of a TIFF.

    Attributes:
        file: the whole file.
        start: where the offset of the first page is in it, and the bytes that make this one first.
        width, height: pixels, as stored.
        bits: of a sample.
        format: SampleFormat; 1 where all samples have several.
        samples: per pixel.
        photometric: PhotometricInterpretation.
        compression: Compression.
        orientation: Orientation.
        fields: where in the file the values of a tag are, and how many bytes each has.
    """

    file: bytes
    start: tuple[int, bytes]
    width: int
    height: int
    bits: int
    format: int
    samples: int
    photometric: int
    compression: int
    orientation: int
    fields: dict[int, tuple[int, int, int]]

    @property
    def data(self) -> bytes:
        """The file with this page as its first."""
        at, pointer = self.start
        return self.file[:at] + pointer + self.file[at + len(pointer) :]

    @property
    def mode(self) -> str:
        """How samples are stored, such as 'float64'."""
        return f"{_NAMES.get(_KINDS.get(self.format, ''), 'complex')}{self.bits}"


def odd_pages(data: bytes) -> list[Page]:
    """All pages of a file, if any of them is of a kind that Pillow does not read; else none.

    A file whose directories cannot be parsed has none: Pillow tells what is wrong with it.
    """
    try:
        pages = list(_pages(data))
    except (struct.error, KeyError, IndexError):
        return []
    return pages if any(map(is_odd, pages)) else []


def is_odd(page: Page) -> bool:
    """Whether Pillow does not read a page, or not for what it is."""
    if page.compression not in COMPRESSION_INFO:
        return True
    if page.photometric == _PALETTE or page.compression in _JPEG:  # bytes without sign
        return False
    if page.samples > 1:
        return page.format != 1 or page.bits > 16
    if page.photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK):
        return False
    key = (page.file[:2], page.photometric, (page.format,), 1, (page.bits,), ())
    return key not in OPEN_INFO or (page.format, page.bits) in _MISTAKEN


def samples_of(page: Page, limits: DecodeLimits) -> npt.NDArray[Any]:
    """The samples of an odd page as stored, (H, W), neither turned nor inverted; colors as luma.

    Raises:
        Unreadable: a kind of sample or compression that nothing here can read.
    """
    limits.check_pixels(page.width, page.height)
    if page.compression not in COMPRESSION_INFO:
        raise Unreadable("TIFF in a compression that is not readable here")
    if page.format not in _KINDS or page.bits not in (8, 16, 32, 64):
        raise Unreadable(f"TIFF with {page.mode} samples is not readable here")
    kind = np.dtype(f"{_KINDS[page.format]}{page.bits // 8}")
    if page.samples > 1 or page.bits == 64:
        return _by_opencv(page, kind)
    known = 2 if page.bits == 32 else 1  # of this width, in either byte order
    renamed = _renamed(page, {_FORMAT: known, _PHOTOMETRIC: _MIN_IS_BLACK, _ORIENTATION: 1})
    image = TiffImageFile(io.BytesIO(renamed))
    found = np.asarray(image)
    return found.astype(found.dtype.newbyteorder("=")).view(kind)


def _by_opencv(page: Page, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    import cv2  # a tenth of a second to import, for a rare kind of file

    data = _renamed(page, {_ORIENTATION: 1, **({_FORMAT: 1} if page.format == 4 else {})})
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != kind:
        raise Unreadable(f"TIFF with {page.mode} samples is not readable here")
    if found.ndim == 2:
        return found
    return np.asarray(found[..., :3].astype(np.float64) @ _LUMA_BGR)


def _renamed(page: Page, values: dict[int, int]) -> bytes:
    """The file with other values in fields of the page."""
    data = bytearray(page.data)
    order = "little" if data[:2] == b"II" else "big"
    for tag, value in values.items():
        start, count, size = page.fields.get(tag, (0, 0, 0))
        for number in range(count):
            at = start + number * size
            data[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(data)


def _pages(data: bytes) -> Iterator[Page]:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    start, word = (8, "Q") if big else (4, "I")
    (at,) = struct.unpack_from(order + word, data, start)
    seen: set[int] = set()
    while at and at not in seen and len(seen) < _MOST_PAGES:
        seen.add(at)
        fields, following = _fields(data, at, order, big)
        yield _page(data, (start, struct.pack(order + word, at)), fields, order)
        at = following


def _fields(
    data: bytes, at: int, order: str, big: bool
) -> tuple[dict[int, tuple[int, int, int]], int]:
    """Place, count and size of the values of each field, and the next directory."""
    counts, entry, word = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    (n_entries,) = struct.unpack_from(order + counts, data, at)
    at += struct.calcsize(order + counts)
    inline = struct.calcsize(order + word)
    found = {}
    for _ in range(min(n_entries, _MOST_ENTRIES)):
        tag, kind, count = struct.unpack_from(order + entry, data, at)
        at += struct.calcsize(order + entry)
        size = _SIZES.get(kind, 0)
        place = at if size * count <= inline else struct.unpack_from(order + word, data, at)[0]
        found[tag] = (place, count, size)
        at += inline
    return found, int(struct.unpack_from(order + word, data, at)[0])


def _page(
    data: bytes, start: tuple[int, bytes], fields: dict[int, tuple[int, int, int]], order: str
) -> Page:
    def first(tag: int, default: int) -> int:
        place, count, size = fields.get(tag, (0, 0, 0))
        if not count or not size:
            return default
        return int(struct.unpack_from(order + " BH I   Q"[size], data, place)[0])

    return Page(
        data,
        start,
        first(_WIDTH, 0),
        first(_HEIGHT, 0),
        first(_BITS, 1),
        first(_FORMAT, 1),
        first(_SAMPLES, 1),
        first(_PHOTOMETRIC, _MIN_IS_BLACK),
        first(_COMPRESSION, 1),
        first(_ORIENTATION, 1),
        fields,
    )
