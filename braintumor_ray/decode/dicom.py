"""DICOM to uint8 gray by pydicom: modality LUT, then the tagged window or a robust range.

Windows, rescaling and padding are for monochrome only (PS3.3, C.11.2.1.2); colors become their
luma as they are stored. Compressed pixel data are decoded by pydicom's plugins; what is installed
decides which transfer syntaxes are readable. Overlays are not drawn.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from braintumor_ray.decode import jpeg
from braintumor_ray.decode.dicom_color import palette_gray
from braintumor_ray.decode.dicom_header import (
    functional_group,
    header_tags,
    mosaic_tiles,
    read_dicom,
    why_no_image,
    why_no_scan,
    why_skipped,
)
from braintumor_ray.decode.dicom_layout import UNDEFINED, PixelElement, PixelLayout, layout_of
from braintumor_ray.decode.dicom_tables import looked_up, table_of
from braintumor_ray.decode.dicom_tags import Tags
from braintumor_ray.decode.intensity import LUMA, Range, robust_range, to_gray, why_blank
from braintumor_ray.decode.types import (
    DEFAULT_LIMITS,
    Decoded,
    DecodeLimits,
    FrameDecoder,
    Gray,
    Probe,
    Unreadable,
    VolumeOptions,
)
from braintumor_ray.types import Mask

Samples = npt.NDArray[Any]
_RANGE_FRAMES = 16  # of a multi-frame object, spread evenly: all frames share one range
_RANGE_VALUES = 250_000  # from each of them
_JPEG_FAMILY = {*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes}
# Of other codecs: a header keeps them where its pixels became a JPEG, which holds YCbCr as ever.
_NOT_OF_JPEG = ("YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
_LOSSY_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit)
_NO_PLUGIN = "compressed DICOM that no installed plugin decodes"
_UNCUT = "Siemens mosaic whose number of slices is not known: not cut"


def open_dicom(
    data: bytes, name: str, limits: DecodeLimits, volumes: VolumeOptions
) -> FrameDecoder:
    """Parse a DICOM file once; what is returned decodes its frames.

    Args:
        data: the whole file, with or without preamble.
        name: ``dicom``.
        limits: `max_pixels` is checked on the header, before pixels are allocated.
        volumes: not used: a DICOM file has frames of its own.

    Raises:
        Unreadable: no pixel data, fewer than the header says, or too large.
    """
    tags, pixels = read_dicom(data, limits)
    skipped = why_skipped(tags)
    if pixels is None and not why_no_scan(tags):
        raise Unreadable(str(why_no_image(tags)))
    if skipped or pixels is None:
        return lambda frame: Decoded(None, skipped, name, _mode(tags, pixels), "skipped")
    layout = _cut(layout_of(tags, pixels, _is_compressed(tags)), tags)
    if layout is None:
        return lambda frame: Decoded(None, _UNCUT, name, _mode(tags, pixels), "skipped")
    limits.check_pixels(layout.columns, layout.rows)
    _check_length(tags, pixels, layout)
    frames = _Frames(tags, layout)

    def decode_frame(frame: int) -> Decoded:
        gray = frames.gray(frame)
        blank = why_blank(gray)
        if blank:
            return Decoded(None, blank, name, layout.mode, "skipped")
        return Decoded(gray, format=name, mode=layout.mode)

    return decode_frame


def probe_dicom(data: bytes, name: str, volumes: VolumeOptions) -> Probe:
    """Read a DICOM header; an object without pixels has a reason, and tags all the same."""
    tags, pixels = read_dicom(data, DEFAULT_LIMITS, pixels=False)
    if why_no_scan(tags):
        return Probe(name, frames=1, tags=header_tags(tags))
    if pixels is None:
        return Probe(name, reason=why_no_image(tags), tags=header_tags(tags))
    try:
        whole = layout_of(tags, pixels, _is_compressed(tags))
    except Unreadable as error:
        return Probe(name, reason=str(error), tags=header_tags(tags))
    layout = _cut(whole, tags) or whole
    width, height = layout.columns // layout.grid, layout.rows // layout.grid
    count = layout.tiles or layout.frames
    return Probe(name, layout.mode, width, height, frames=count, tags=header_tags(tags))


def _is_compressed(tags: Tags) -> bool:
    syntax = tags.dataset.file_meta.TransferSyntaxUID
    return bool(syntax.is_transfer_syntax and syntax.is_compressed)


def _cut(layout: PixelLayout, tags: Tags) -> PixelLayout | None:
    """The layout, of a mosaic with its tiles; None for a mosaic that cannot be cut for sure."""
    tiles = mosaic_tiles(tags)
    if tiles is None or layout.samples > 1:
        return layout if tiles is not None else None
    found = replace(layout, tiles=tiles)
    fits = not (found.rows % found.grid or found.columns % found.grid)
    return found if fits else None


def _mode(tags: Tags, pixels: PixelElement | None) -> str | None:
    """The mode of what is skipped, which need not be readable."""
    try:
        return layout_of(tags, pixels, _is_compressed(tags)).mode if pixels else None
    except Unreadable:
        return None


class _Frames:
    """The frames of a parsed object, or the slices of a mosaic, as gray images."""

    def __init__(self, tags: Tags, layout: PixelLayout) -> None:
        self._tags, self._layout = tags, layout
        self._words = _Words(tags, layout)
        self._range: Range | None = None
        self._latest: tuple[int, Gray] | None = None

    def gray(self, frame: int) -> Gray:
        """uint8 (H, W) of one frame.

        Raises:
            Unreadable: there is no such frame, or its pixel data cannot be decoded.
        """
        count = self._layout.tiles or self._layout.frames
        if not 0 <= frame < count:
            raise Unreadable(f"frame {frame} is out of range: the file has {count}")
        if not self._layout.tiles:
            return self._drawn(frame)
        if self._latest is None:
            self._latest = (0, self._drawn(0))
        return _tile(self._latest[1], frame, self._layout.grid)

    def _drawn(self, frame: int) -> Gray:
        photometric = self._layout.photometric
        if photometric == "PALETTE COLOR":
            return palette_gray(self._words.values(frame)[0], self._tags)
        if self._layout.samples > 1:
            return self._luma(self._words.colors(frame))
        stored, padding = self._words.values(frame)
        gray = self._monochrome(frame, stored, padding)
        gray = 255 - gray if photometric == "MONOCHROME1" else gray
        if padding is not None:
            gray[padding] = 0  # background, whichever end of the scale is black
        return gray

    def _monochrome(self, frame: int, stored: Samples, padding: Mask | None) -> Gray:
        item = functional_group(self._tags, frame, "PixelValueTransformationSequence")
        values, rising = _rescaled(stored, item)
        gray = tagged_window(values, functional_group(self._tags, frame, "FrameVOILUTSequence"))
        if gray is not None and _shows(gray, values, padding):
            return gray
        if self._is_eight_bit() and rising:
            return to_gray(stored, Range(0.0, 2.0**self._layout.stored - 1))
        return to_gray(values, self._shared_range())

    def _luma(self, samples: Samples) -> Gray:
        luma = samples[..., :3].astype(np.float32) @ LUMA
        bits = self._layout.stored
        return to_gray(np.rint(luma), Range(0.0, 2.0**bits - 1))

    def _is_eight_bit(self) -> bool:
        """Whether the stored values are gray levels as they are."""
        layout = self._layout
        return layout.stored <= 8 and not layout.signed and layout.keyword == "PixelData"

    def _shared_range(self) -> Range:
        if self._range is None:
            count = self._layout.frames
            chosen = np.linspace(0, count - 1, min(count, _RANGE_FRAMES)).astype(int)
            parts = [self._sample(int(frame)) for frame in np.unique(chosen)]
            values = np.concatenate(parts)
            self._range = robust_range(values) if values.size else Range(0.0, 0.0)
        return self._range

    def _sample(self, frame: int) -> npt.NDArray[np.float32]:
        try:
            stored, padding = self._words.values(frame)
        except Unreadable:
            return np.empty(0, np.float32)  # it costs only itself
        kept = stored.ravel() if padding is None else stored[~padding]
        kept = kept[:: max(1, kept.size // _RANGE_VALUES)]
        item = functional_group(self._tags, frame, "PixelValueTransformationSequence")
        return np.asarray(_rescaled(kept, item)[0], dtype=np.float32)


def _shows(gray: Gray, values: Samples, padding: Mask | None) -> bool:
    """Whether a window shows anything of what there is to be seen."""
    if padding is not None:
        gray, values = gray[~padding], values[~padding]
    return bool(gray.size and (np.ptp(gray) or not np.ptp(values)))


def _tile(whole: Gray, index: int, grid: int) -> Gray:
    """One slice of a mosaic, which are laid out row by row."""
    height, width = whole.shape[0] // grid, whole.shape[1] // grid
    row, column = divmod(index, grid)
    cut = whole[row * height : (row + 1) * height, column * width : (column + 1) * width]
    return np.ascontiguousarray(cut)


class _Words:
    """The stored values of an object's frames, and which of them are padding."""

    def __init__(self, tags: Tags, layout: PixelLayout) -> None:
        self._tags, self._layout = tags, layout
        self._padding = _padding_of(tags, layout)
        self._syntax = tags.dataset.file_meta.TransferSyntaxUID
        # Decoders of JPEG and its kin give samples; elsewhere whole words lie in the file.
        self._in_words = not self._syntax.is_compressed or self._syntax == RLELossless
        self._in_words &= layout.samples == 1 and layout.allocated in (8, 16, 32)
        self._in_words &= layout.keyword == "PixelData"
        self._as_they_lie = self._in_words and not self._syntax.is_compressed
        self._as_they_lie &= self._syntax.is_little_endian
        self._shift: int | None = None
        self._latest: tuple[int, Samples, Mask | None] | None = None

    @cached_property
    def _plain(self) -> Dataset:
        plain = _plain_dataset(self._tags, self._layout)
        if self._in_words:
            plain.BitsStored = self._layout.allocated
        return plain

    def values(self, frame: int) -> tuple[Samples, Mask | None]:
        """Stored values (H, W) and the mask of padding, None where there is none."""
        if self._latest is None or self._latest[0] != frame:
            self._latest = (frame, *self._read(frame))
        return self._latest[1:]

    def colors(self, frame: int) -> Samples:
        """Samples (H, W, 3) as RGB."""
        return _decoded(self._plain, frame)

    def _read(self, frame: int) -> tuple[Samples, Mask | None]:
        if self._layout.keyword != "PixelData":
            values = self._floats(frame)
            return values, self._mask(values, values)
        words = self._decoded(frame)
        values = self._cut(words) if self._in_words else words
        return values, self._mask(words, values)

    def _decoded(self, frame: int) -> Samples:
        if self._as_they_lie:
            kind = f"<{'i' if self._layout.signed else 'u'}{self._layout.allocated // 8}"
            return self._native(frame, np.dtype(kind))
        words = _decoded(self._plain, frame)
        if words.ndim > 2:  # compressed colors under a monochrome header
            raise Unreadable("damaged DICOM: its pixel data have colors, its header has none")
        return words.astype(words.dtype.newbyteorder("="), copy=False)

    def _cut(self, words: Samples) -> Samples:
        """The bits of the sample out of the words (PS3.5, 8.1.1); others may hold anything."""
        layout = self._layout
        if self._shift is None:
            self._shift = self._lowest_bit()
        above = layout.allocated - layout.stored - self._shift
        if not above and not self._shift:
            return words
        if not self._shift and not layout.signed and words.max() < 2**layout.stored:
            return words  # nothing above the sample, as nearly everywhere
        return (words << above) >> (above + self._shift)

    def _lowest_bit(self) -> int:
        shift = self._layout.high + 1 - self._layout.stored
        if not shift:
            return 0
        words = self._decoded(0)  # whichever frame is wanted: all must be cut alike
        bits = words.view(f"u{words.itemsize}")
        if bits.max() < 2**self._layout.stored and (bits & (2**shift - 1)).any():
            return 0  # HighBit is wrong: nothing reaches it, and bits below the sample are in use
        return shift

    def _mask(self, words: Samples, values: Samples) -> Mask | None:
        if self._padding is None:
            return None
        ends, size = self._padding, 2**self._layout.allocated
        where = values
        if not any(_fits(end, self._layout) for end in ends):
            if min(ends) < -size // 2 or max(ends) >= size:
                return None
            # Outside the bits in use: only the whole words can hold it.
            where, ends = words.view(f"u{words.itemsize}"), tuple(end % size for end in ends)
        mask = (where >= min(ends)) & (where <= max(ends))
        return mask if mask.any() else None

    def _floats(self, frame: int) -> Samples:
        order = "<" if self._syntax.is_little_endian else ">"
        return self._native(frame, np.dtype(f"{order}f{self._layout.allocated // 8}"))

    def _native(self, frame: int, kind: "np.dtype[Any]") -> Samples:
        """The samples of an uncompressed frame as they lie in the file, without a copy."""
        layout = self._layout
        each = layout.rows * layout.columns
        data = self._tags.value(layout.keyword)
        values = np.frombuffer(data, kind, each, frame * each * kind.itemsize)
        return values.reshape(layout.rows, layout.columns).astype(
            kind.newbyteorder("="), copy=False
        )


def _fits(value: float, layout: PixelLayout) -> bool:
    if layout.keyword != "PixelData":
        return True
    low = -(2 ** (layout.stored - 1)) if layout.signed else 0
    return low <= value < low + 2**layout.stored


_PADDING = {
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}


def _padding_of(tags: Tags, layout: PixelLayout) -> tuple[float, ...] | None:
    """Both ends of the stored values that are no part of the image (PS3.3, C.7.5.1.1.2)."""
    if layout.samples > 1 or layout.photometric == "PALETTE COLOR":
        return None
    value, limit = (tags.number(keyword) for keyword in _PADDING[layout.keyword])
    if value is None:
        return None
    return tuple(_as_stored(end, layout) for end in (value, value if limit is None else limit))


def _as_stored(value: float, layout: PixelLayout) -> float:
    """A padding value in the signedness of the pixels: files hold it in either."""
    if _fits(value, layout):
        return value
    other = value + 2**16 if value < 0 else value - 2**16
    return other if _fits(other, layout) else value


def _plain_dataset(tags: Tags, layout: PixelLayout) -> Dataset:
    """What pydicom's decoders need and no more, every attribute as `layout` has it."""
    plain = Dataset()
    plain.file_meta = tags.dataset.file_meta
    plain.Rows, plain.Columns = layout.rows, layout.columns
    plain.NumberOfFrames = layout.frames
    plain.SamplesPerPixel, plain.PlanarConfiguration = layout.samples, int(layout.planar)
    lossy = tags.dataset.file_meta.TransferSyntaxUID in _LOSSY_JPEG
    left_over = lossy and layout.photometric in _NOT_OF_JPEG
    plain.PhotometricInterpretation = "YBR_FULL" if left_over else layout.photometric
    plain.BitsAllocated, plain.BitsStored = layout.allocated, layout.stored
    plain.HighBit, plain.PixelRepresentation = layout.stored - 1, int(layout.signed)
    for keyword in (layout.keyword, "ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in tags:
            plain.add(tags.dataset[keyword])
    return plain


def _decoded(dataset: Dataset, frame: int) -> Samples:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise Unreadable("DICOM in a transfer syntax that is not readable here") from error
    if not decoder.is_available:
        raise Unreadable(_NO_PLUGIN)
    with _damage():
        stream = _codestream(dataset, frame) if syntax in _JPEG_FAMILY else b""
    picture = jpeg.stated(stream)
    _check_stated(picture, dataset)
    if picture and picture.transformed:  # a header of YCbCr is of the object before compression
        dataset.PhotometricInterpretation = "RGB"
    with _damage():
        samples = decoder.as_array(dataset, index=frame)[0]
    if syntax in _LOSSY_JPEG:
        jpeg.check_frame_end(stream, samples)
    return samples


def _check_stated(picture: jpeg.Stated | None, header: Dataset) -> None:
    """Decoders fill the frame of the header, whatever the picture is, or crash."""
    if picture is None:
        return
    if picture[:2] != (header.Columns, header.Rows):
        raise Unreadable("damaged DICOM: its pixel data have another size than its header says")
    if picture.samples != header.SamplesPerPixel:
        raise Unreadable("damaged DICOM: its pixel data have other colors than its header says")
    if picture.bits > header.BitsAllocated:
        raise Unreadable("damaged DICOM: its pixel data have more bits than its header says")


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, AttributeError) as error:  # what pydicom raises
        if "does not support" in str(error):  # what a plugin says of JPEGs of 12 bits
            raise Unreadable(_NO_PLUGIN) from error
        raise Unreadable("damaged DICOM: the pixel data cannot be decoded") from error


def _codestream(dataset: Dataset, frame: int) -> bytes:
    """The compressed bytes of a frame."""
    offsets = "ExtendedOffsetTable", "ExtendedOffsetTableLengths"
    extended = tuple(dataset[key].value for key in offsets if key in dataset)
    return get_frame(
        dataset.PixelData,
        frame,
        number_of_frames=dataset.NumberOfFrames,
        extended_offsets=extended if len(extended) == len(offsets) else None,
    )


def _check_length(tags: Tags, pixels: PixelElement, layout: PixelLayout) -> None:
    if not tags.dataset.file_meta.TransferSyntaxUID.is_transfer_syntax:
        raise Unreadable("DICOM in a transfer syntax that is not readable here")
    undefined = pixels.length == UNDEFINED
    if _is_compressed(tags) and not undefined:
        raise Unreadable("damaged DICOM: compressed pixel data of fixed length")
    if undefined and not _is_compressed(tags):
        raise Unreadable("damaged DICOM: compressed pixel data, and no word of how")
    if not undefined and pixels.length < layout.native_bytes(layout.frames):
        raise Unreadable("truncated DICOM: fewer pixel data than its header says")


def _rescaled(stored: Samples, item: Tags) -> tuple[Samples, bool]:
    """Values after the modality LUT, and whether gray levels keep their order.

    A table that cannot be parsed, a slope of zero and an empty number count as absent; slope and
    intercept go together (PS3.3, C.11.1).
    """
    tables = item.items("ModalityLUTSequence")
    if tables:
        table = table_of(tables)
        if table:
            return looked_up(stored, *table), False
        item.unread.add("ModalityLUTSequence")
    slope = item.number("RescaleSlope") or 1.0
    intercept = item.number("RescaleIntercept") or 0.0
    one_of_two = ("RescaleSlope" in item) != ("RescaleIntercept" in item)
    if one_of_two or (slope, intercept) == (1.0, 0.0):
        return stored, True
    return stored.astype(np.float64) * slope + intercept, slope > 0


def tagged_window(values: npt.NDArray[Any], item: Tags) -> Gray | None:
    """Apply the first tagged window, else the first VOI lookup table.

    Args:
        values: (H, W), after the modality LUT.
        item: the object, or the frame's VOI functional group.

    Returns:
        uint8 (H, W); None where nothing usable is tagged.
    """
    gray = _windowed(values, item)
    return _looked_up(values, item) if gray is None else gray


def _windowed(values: npt.NDArray[Any], item: Tags) -> Gray | None:
    center, width = (item.number(key) for key in ("WindowCenter", "WindowWidth"))
    function = (item.text("VOILUTFunction") or "LINEAR").upper()
    least = 1 if function == "LINEAR" else np.finfo(float).tiny
    if center is None or width is None or width < least:
        return None
    window = Window(center, width, function)
    if values.dtype in (np.uint16, np.int16):
        return _by_bits(values, window)
    return _through_table(values, window)


class Window(NamedTuple):
    """A tagged window; `function` is a VOI LUT Function (PS3.3, C.11.2.1.3)."""

    center: float
    width: float
    function: str

    def gray(self, values: npt.NDArray[Any]) -> Gray:
        """What it shows of values, as uint8 of the same shape."""
        shown = apply_windowing(_finite(values), _window(*self))
        return np.rint(shown.clip(0, 255)).astype(np.uint8)


@lru_cache(maxsize=64)  # slices of a series share theirs
def _window(center: float, width: float, function: str) -> Dataset:
    """For pydicom, which spreads a window over the range of the dataset's samples: here 0..255."""
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.BitsStored, window.PixelRepresentation = 8, 0
    window.WindowCenter, window.WindowWidth = center, width
    known = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
    window.VOILUTFunction = function if function in known else "LINEAR"
    return window


def _by_bits(values: npt.NDArray[Any], window: Window) -> Gray:
    """What a window shows of numbers of 16 bits: looked up in a table that a series shares."""
    import cv2  # headers alone are read without it

    low, high = int(values.min()), int(values.max())
    bits = max(max(~low, high).bit_length(), 8)  # few sizes, so that slices share tables
    table = _table(window, -(2**bits) if low < 0 else 0, 2**bits)
    try:
        return np.asarray(cv2.LUT(values.view(np.uint16), table), np.uint8)
    except cv2.error:  # OpenCV 4 looks up numbers of 8 bits only
        return np.take(table, values.view(np.uint16))


@lru_cache(maxsize=16)
def _table(window: Window, low: int, end: int) -> Gray:
    """What a window shows of the numbers from `low` to below `end`, by their 16 bits."""
    numbers = np.arange(low, end)
    table = np.zeros(2**16, np.uint8)
    table[numbers] = window.gray(numbers)  # a negative index counts from the end, as its bits do
    return table


def _through_table(values: npt.NDArray[Any], window: Window) -> Gray:
    """What a window shows of each value: of whole numbers in a short range, once for each number.

    Windowing in float64 costs several times what a look-up does, and gives the same.
    """
    if values.dtype.kind not in "iu" or values.itemsize > 4 or not values.size:
        return window.gray(values)
    low, high = int(values.min()), int(values.max())
    if high - low >= values.size // 4:
        return window.gray(values)
    table = window.gray(np.arange(low, high + 1))
    return np.take(table, np.subtract(values, low, dtype=np.int64))


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """As float64; what is no number counts as the lowest."""
    numbers = values.astype(np.float64)
    if values.dtype.kind != "f" or np.isfinite(numbers).all():
        return numbers
    low = numbers.min(where=np.isfinite(numbers), initial=math.inf)
    return np.nan_to_num(numbers, nan=low if math.isfinite(low) else 0.0)


def _looked_up(values: npt.NDArray[Any], item: Tags) -> Gray | None:
    tables = item.items("VOILUTSequence")
    if not tables or values.dtype.kind not in "iuf":
        return None
    table = table_of(tables)
    if table is None:
        item.unread.add("VOILUTSequence")
        return None
    bits = max(1, table.about.bits, int(table.entries.max()).bit_length())
    levels = np.rint(table.entries * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
    return np.asarray(looked_up(values, table.about, levels), np.uint8)
