"""TIFF samples that Pillow does not know, or takes for others: read by the page's own tags.

Pillow takes signed bytes and 32-bit integers without sign for what they are not, and refuses
half and double floats, 64-bit integers and `undefined` samples as if the file were damaged. Here
such a page is found by its tags (TIFF 6.0; BigTIFF) and read under a name of the same width: the
bits are then seen as what they are. 64 bits and wide colors go through OpenCV.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.TiffImagePlugin import COMPRESSION_INFO, OPEN_INFO, TiffImageFile

from braintumor_ray.decode.types import DecodeLimits, Unreadable

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR, _FORMAT = 274, 277, 284, 339
_PARTS = ((273, 279), (324, 325))  # offsets and lengths: of strips, of tiles
_FOR_ALL_PLANES = (266, 278, 317, 322, 323)  # FillOrder, RowsPerStrip, Predictor, size of a tile
_JPEG, _DEFLATE = (6, 7), (8, 32_946)  # Compression
_PIECE = 2**20  # bytes, unpacked
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # SampleFormat; 4 is undefined, which is bits as they are
_NAMES = {"u": "uint", "i": "int", "f": "float"}
_SEPARATE = 2  # PlanarConfiguration: plane by plane
_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}  # of the field types that counts and sizes come in
_LETTERS = " BH I   Q"  # of `struct`, by size
_MOST_PAGES = 65_535
_MOST_ENTRIES = 4_096
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE = 0, 1, 2, 3
_LUMA_BGR = np.array([0.114, 0.587, 0.299])  # ITU-R BT.601
_MISTAKEN = ((2, 8), (1, 32))  # (SampleFormat, bits) that Pillow opens as another kind


@dataclass(frozen=True)
class TiffPage:
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
        separate: whether colors lie plane by plane.
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
    separate: bool
    fields: dict[int, tuple[int, int, int]]

    @property
    def data(self) -> bytes:
        """The file with this page as its first."""
        at, pointer = self.start
        return self.file[:at] + pointer + self.file[at + len(pointer) :]

    @property
    def order(self) -> str:
        """The file's byte order, as `struct` has it."""
        return "<" if self.file[:2] == b"II" else ">"

    @property
    def mode(self) -> str:
        """How samples are stored, such as 'float64'."""
        return f"{_NAMES.get(_KINDS.get(self.format, ''), 'complex')}{self.bits}"


def parsed_pages(data: bytes) -> tuple[list[TiffPage], bool]:
    """The pages before the first whose directory cannot be parsed, and whether they are all."""
    found = []
    try:
        for page in _pages(data):
            found.append(page)
    except (struct.error, KeyError, IndexError):
        return found, False
    return found, True


def nonstandard_pages(pages: list[TiffPage], are_all: bool) -> list[TiffPage]:
    """All pages of a file, if any of them is of a kind that Pillow does not read; else none.

    A file whose directories cannot be parsed has none: Pillow reports what is wrong with it.
    """
    return pages if are_all and any(map(is_nonstandard, pages)) else []


def is_nonstandard(page: TiffPage) -> bool:
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


def check_deflated(page: TiffPage, limits: DecodeLimits) -> None:
    """Compare strips and tiles with the checksums that deflate ends in.

    libtiff stops when it has all pixels, so that it never sees the checksum of a damaged strip that
    became longer.

    Raises:
        Unreadable: one does not agree, or is cut.
    """
    if page.compression not in _DEFLATE:
        return
    limits.check_pixels(page.width, page.height)
    for offsets, lengths in _PARTS:
        if {offsets, lengths} <= page.fields.keys():
            parts = zip(_values(page, offsets), _values(page, lengths), strict=False)
            if not all(_is_whole(page.file[at : at + size]) for at, size in parts if size):
                raise Unreadable("damaged TIFF: pixels and their checksum do not agree")


def _is_whole(packed: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        while not unpacker.eof:
            if not unpacker.decompress(packed, _PIECE) and not unpacker.eof:
                return False
            packed = unpacker.unconsumed_tail
    except zlib.error:
        return False
    return True


def samples_of(page: TiffPage, limits: DecodeLimits) -> npt.NDArray[Any]:
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


def wide_color(page: TiffPage) -> npt.NDArray[np.uint16]:
    """The samples of a page of 16-bit color, (H, W, 3 or 4), not turned; red first, alpha last.

    Raises:
        Unreadable: a layout that nothing here can read.
    """
    if page.photometric != _RGB:
        raise Unreadable("16-bit color in a layout that is not readable here")
    if page.separate:  # neither Pillow nor OpenCV puts planes of 16 bits together
        planes = [TiffImageFile(io.BytesIO(_plane(page, k))) for k in range(page.samples)]
        found = np.stack([np.asarray(plane) for plane in planes], axis=-1)
        return found.astype(found.dtype.newbyteorder("="))
    import cv2  # a tenth of a second to import, for a rare kind of file

    upright = np.frombuffer(_renamed(page, {_ORIENTATION: 1}), np.uint8)
    return red_first(cv2.imdecode(upright, cv2.IMREAD_UNCHANGED))


def red_first(samples: npt.NDArray[Any] | None) -> npt.NDArray[np.uint16]:
    """16-bit colors as OpenCV gives them, with red first.

    Raises:
        Unreadable: OpenCV gave no such colors.
    """
    if samples is None or samples.ndim != 3 or samples.dtype != np.uint16:
        raise Unreadable("16-bit color in a layout that is not readable here")
    return samples[..., [2, 1, 0, 3][: samples.shape[2]]]


def _plane(page: TiffPage, number: int) -> bytes:
    """The file with one color of a page that lies plane by plane as its first page, in gray."""
    order = page.order
    at, pointer = page.start
    counts, entry, word = ("Q", "HHQ", "Q") if len(pointer) == 8 else ("H", "HHI", "I")
    kind, size = (16, 8) if word == "Q" else (4, 4)
    stored = {_WIDTH: page.width, _HEIGHT: page.height, _BITS: page.bits, _SAMPLES: 1}
    stored |= {_COMPRESSION: page.compression, _PHOTOMETRIC: _MIN_IS_BLACK}
    tags = {tag: [value] for tag, value in stored.items()}
    tags |= {tag: _values(page, tag) for tag in _FOR_ALL_PLANES if tag in page.fields}
    for tag in chain.from_iterable(_PARTS):
        if tag in page.fields:
            values = _values(page, tag)
            each = len(values) // page.samples
            tags[tag] = values[number * each : (number + 1) * each]
    start = len(page.file) + len(page.file) % 2
    behind = (
        start
        + struct.calcsize(order + counts + word)
        + len(tags) * (struct.calcsize(order + entry) + size)
    )
    directory, lists = struct.pack(order + counts, len(tags)), b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{word}", *values)
        if len(packed) > size:
            lists, packed = lists + packed, struct.pack(order + word, behind + len(lists))
        directory += struct.pack(order + entry, tag, kind, len(values)) + packed.ljust(size, b"\0")
    changed = page.file[:at] + struct.pack(order + word, start) + page.file[at + size :]
    return changed.ljust(start, b"\0") + directory + struct.pack(order + word, 0) + lists


def _values(page: TiffPage, tag: int) -> list[int]:
    place, count, size = page.fields[tag]
    return [*struct.unpack_from(f"{page.order}{count}{_LETTERS[size]}", page.file, place)]


def _by_opencv(page: TiffPage, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    import cv2  # a tenth of a second to import, for a rare kind of file

    data = _renamed(page, {_ORIENTATION: 1, **({_FORMAT: 1} if page.format == 4 else {})})
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != kind:
        raise Unreadable(f"TIFF with {page.mode} samples is not readable here")
    if found.ndim == 2:
        return found
    return np.asarray(found[..., :3].astype(np.float64) @ _LUMA_BGR)


def _renamed(page: TiffPage, values: dict[int, int]) -> bytes:
    """The file with other values in fields of the page."""
    data = bytearray(page.data)
    order = "little" if data[:2] == b"II" else "big"
    for tag, value in values.items():
        start, count, size = page.fields.get(tag, (0, 0, 0))
        for number in range(count):
            at = start + number * size
            data[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(data)


def _pages(data: bytes) -> Iterator[TiffPage]:
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
) -> TiffPage:
    def first(tag: int, default: int) -> int:
        place, count, size = fields.get(tag, (0, 0, 0))
        if not count or not size:
            return default
        return int(struct.unpack_from(order + _LETTERS[size], data, place)[0])

    return TiffPage(
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
        first(_PLANAR, 1) == _SEPARATE,
        fields,
    )
