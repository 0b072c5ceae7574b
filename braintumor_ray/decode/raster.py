"""JPEG, PNG, TIFF and BMP to uint8 gray, all through Pillow, so that every path agrees.

Gray is ITU-R BT.601 luma as Pillow rounds it (``convert("L")``); for a YCbCr JPEG it is the Y
plane that the file stores. Gray pixels (R = G = B) keep their value exactly, so an L image and
its RGB copy give the same array. Transparent pixels are laid over black, as MR backgrounds are.
OpenCV decodes JPEG to the same bytes, but fills truncated files with gray in silence and writes
warnings to stderr; it is used for 16-bit color only, which Pillow cannot keep.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from braintumor_ray.decode import jpeg
from braintumor_ray.decode.intensity import LUMA, robust_range, to_gray, why_blank
from braintumor_ray.decode.tiff import (
    TiffPage,
    check_deflated,
    is_nonstandard,
    nonstandard_pages,
    parsed_pages,
    red_first,
    samples_of,
    wide_color,
)
from braintumor_ray.decode.types import (
    Decoded,
    DecodeLimits,
    FrameDecoder,
    Gray,
    Probe,
    Unreadable,
    VolumeOptions,
    label,
)

# Opened by class, not by Image.open: no decompression-bomb warning or error before our own limit
# speaks, and no guessing by other plugins.
_PLUGINS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "tiff": TiffImageFile,
    "bmp": BmpImageFile,
}
_ORIENTATION_TAG = 0x0112
_BITS_TAG, _PHOTOMETRIC_TAG, _SAMPLES_TAG, _PLANAR_TAG = 258, 262, 277, 284
_WIDE_MODES = ("I", "F")
_OF_ANOTHER_KIND = ("unsupported", "unknown pixel mode", "unknown data org", "cannot handle")
_PNG_NOTES = (b"eXIf", b"iTXt")  # chunks that may turn the picture
_PNG_DEPTH = 24  # where the bits of a sample are, in the IHDR chunk
_PNG_HEADER = 33  # bytes before what follows the IHDR chunk
_UPRIGHT: dict[int, Callable[[Gray], Gray]] = {  # EXIF 2.3, tag 0x0112
    2: lambda gray: gray[:, ::-1],
    3: lambda gray: gray[::-1, ::-1],
    4: lambda gray: gray[::-1],
    5: lambda gray: gray.T,
    6: lambda gray: gray[::-1].T,
    7: lambda gray: gray[::-1, ::-1].T,
    8: lambda gray: gray[:, ::-1].T,
}


def open_raster(
    data: bytes, name: str, limits: DecodeLimits, volumes: VolumeOptions
) -> FrameDecoder:
    """Parse a raster file once; what is returned decodes its frames.

    Args:
        data: The whole file.
        name: ``jpeg``, ``png``, ``tiff`` or ``bmp``.
        limits: `max_pixels` is checked on the header, before pixels are allocated.
        volumes: not used.

    Raises:
        Unreadable: if the file is damaged, truncated, too large, or has no such frame.
    """
    file = _RasterFile(data, name, limits)

    def decode_frame(frame: int) -> Decoded:
        try:
            gray, mode = file.decoded(frame)
            blank = why_blank(gray)
            if blank:
                return Decoded(None, blank, name, mode, "skipped")
            return Decoded(gray, format=name, mode=mode)
        except Image.DecompressionBombError as error:  # Pillow's own limit, for TIFF only
            raise Unreadable("more pixels than Pillow's own limit allows") from error
        except (OSError, SyntaxError, EOFError, struct.error) as error:  # Pillow's, on damage
            raise Unreadable(_damage(error, name, data)) from error

    return decode_frame


class _RasterFile:
    """A raster file and what is known of its pages, so that each is parsed once."""

    def __init__(self, data: bytes, name: str, limits: DecodeLimits) -> None:
        self._data, self._name, self._limits = data, name, limits
        self._image: ImageFile.ImageFile | None = None

    @cached_property
    def _pages(self) -> tuple[list[TiffPage], bool]:
        return parsed_pages(self._data) if self._name == "tiff" else ([], True)

    @cached_property
    def _nonstandard(self) -> list[TiffPage]:
        return nonstandard_pages(*self._pages)

    def decoded(self, frame: int) -> tuple[Gray, str]:
        """Gray image and mode of one frame; page of a TIFF, other formats have frame 0 only."""
        data = self._data
        if self._name == "png":
            check_png(data)
        if 0 <= frame < len(self._pages[0]):
            check_deflated(self._pages[0][frame], self._limits)
        if self._nonstandard:
            _check_frame(frame, len(self._nonstandard))
            if is_nonstandard(page := self._nonstandard[frame]):
                return _nonstandard_tiff_gray(page, self._limits), page.mode
            # As the first of a file of its own: Pillow refuses to pass the odd ones.
            return _RasterFile(page.data, self._name, self._limits).first()
        plain = jpeg.plain_gray(data, self._limits) if self._name == "jpeg" and not frame else None
        if plain:
            jpeg.check_end(data, plain[0])
            return plain
        return self._drawn(frame)

    def first(self) -> tuple[Gray, str]:
        """The first page alone, whatever the others are."""
        return self._drawn(0)

    def _drawn(self, frame: int) -> tuple[Gray, str]:
        data = self._data
        # Not an image that was decoded at this frame before: it would keep what it has.
        image, self._image = self._image, None
        if image is None or image.tell() == frame:
            image = _opened(data, self._name)
        if frame != image.tell():
            _check_frame(frame, _frames(image))
            image.readonly = 1  # the next page is not drawn over this one's memory
            image.seek(frame)
        self._limits.check_pixels(*image.size)
        mode = image.mode
        gray = self._wide_gray(image, frame) if _is_wide_color(image) else _gray(image, data)
        self._image = image  # it has not failed
        return gray, mode

    def _wide_gray(self, image: ImageFile.ImageFile, frame: int) -> Gray:
        if self._name == "tiff":
            page = self._pages[0][frame]
            return _upright(_luma(wide_color(page)), page.orientation)
        import cv2  # a tenth of a second to import, for a rare kind of file

        stored = np.frombuffer(self._data, np.uint8)
        samples = red_first(cv2.imdecode(stored, cv2.IMREAD_UNCHANGED))
        gray = _luma(samples)
        transparent = image.info.get("transparency")
        if isinstance(transparent, tuple):
            gray[(samples[..., :3] == transparent).all(axis=-1)] = 0
        return _upright(gray, _orientation(image))


def _opened(data: bytes, name: str) -> ImageFile.ImageFile:
    image = _PLUGINS[name](io.BytesIO(_notes_first(data) if name == "png" else data))
    level = image.info.get("transparency")
    if image.mode == "L" and isinstance(level, int):
        # Pillow spreads gray of 2 and 4 bits over 8, but not the level that is transparent.
        image.info["transparency"] = level * 255 // (2 ** data[_PNG_DEPTH] - 1)
    return image


def _is_wide_color(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow would cut colors of 16 bits to 8."""
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK"):
        return False
    if isinstance(image, TiffImageFile):
        bits, samples = image.tag_v2.get(_BITS_TAG, (1,)), image.tag_v2.get(_SAMPLES_TAG, 1)
        separate = image.tag_v2.get(_PLANAR_TAG, 1) == 2
        return max(bits) > 8 and samples > 1 and (separate or image.mode != "CMYK")
    return isinstance(image, PngImageFile) and ";16" in str(image.tile[0].args)


def _nonstandard_tiff_gray(page: TiffPage, limits: DecodeLimits) -> Gray:
    gray = rescale(samples_of(page, limits))
    gray = 255 - gray if page.photometric == 0 else gray
    return _upright(gray, page.orientation)


def _upright(gray: Gray, orientation: int) -> Gray:
    return np.ascontiguousarray(_UPRIGHT.get(orientation, np.asarray)(gray))


def _check_frame(frame: int, count: int) -> None:
    if not 0 <= frame < count:
        raise Unreadable(f"frame {frame} is out of range: the file has {count}")


def probe_raster(data: bytes, name: str, volumes: VolumeOptions) -> Probe:
    """Read a raster file's header; width and height are those of the upright image.

    Raises:
        Unreadable: if the header is damaged, or not wholly in `data`.
    """
    try:
        pages = nonstandard_pages(*parsed_pages(data)) if name == "tiff" else []
        if pages:
            return _probe_nonstandard(pages)
        image = _opened(data, name)
        width, height = image.size
        if _orientation(image) >= 5:  # of a TIFF, Pillow has turned the size itself
            width, height = height, width
        return Probe(name, image.mode, width, height, frames=_frames(image))
    except (OSError, SyntaxError, EOFError, struct.error) as error:
        raise Unreadable(_damage(error, name, data)) from error


def _probe_nonstandard(pages: list[TiffPage]) -> Probe:
    first = pages[0]
    size = (first.height, first.width) if first.orientation >= 5 else (first.width, first.height)
    return Probe("tiff", first.mode, *size, frames=len(pages))


def check_png(data: bytes) -> None:
    """Check what Pillow does not: every chunk's checksum, and that the file has its end.

    Raises:
        Unreadable: on a bad checksum, or if the file ends before its IEND chunk.
    """
    view = memoryview(data)
    for kind, start, end in _chunks(data):
        if end > len(data):
            raise Unreadable("truncated PNG: ends inside a chunk")
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[start + 4 : end - 4]) != stored:
            known = kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND")
            where = kind.decode() if known else "an ancillary chunk"
            raise Unreadable(f"PNG: bad checksum in {where}")
        if kind == b"IEND":
            return
    raise Unreadable("truncated PNG: no IEND chunk")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of a PNG's chunks; the last may end behind the data."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        yield data[at + 4 : at + 8], at, end
        at = end


def _notes_first(data: bytes) -> bytes:
    """A PNG whose notes behind the pixels are in front too: Pillow reads them with the header."""
    notes, seen = b"", False
    for kind, start, end in _chunks(data):
        seen |= kind == b"IDAT"
        if seen and kind in _PNG_NOTES and end <= len(data):
            notes += data[start:end]
    return data[:_PNG_HEADER] + notes + data[_PNG_HEADER:] if notes else data


def rescale(samples: npt.NDArray[Any]) -> Gray:
    """Bring samples wider than 8 bits to 0..255.

    An 8-bit image in a wider container comes back exactly, whether stored as it is (0..255),
    times 257 (replicated bits) or times 256 (shifted). Anything else is mapped linearly, the 0.5th
    percentile to 0 and the 99.5th to 255, clipped: MR intensities have no unit, and a few hot
    pixels must not darken the rest. A constant image stays constant; NaN counts as the lowest.

    Args:
        samples: (H, W) integers or floats of any range.

    Raises:
        Unreadable: if no sample is finite.
    """
    if samples.dtype.kind in "iu":
        exact = _as_eight_bit(samples)
        if exact is not None:
            return exact
    return to_gray(samples, robust_range(samples))


def _as_eight_bit(samples: npt.NDArray[Any]) -> Gray | None:
    low, high = int(samples.min()), int(samples.max())
    if low < 0:
        return None
    for step in (1, 257, 256):
        if high <= 255 * step and not (samples % step).any():
            return (samples // step).astype(np.uint8)
    return None


def _frames(image: ImageFile.ImageFile) -> int:
    return int(image.n_frames) if isinstance(image, TiffImageFile) else 1


def _gray(image: ImageFile.ImageFile, data: bytes) -> Gray:
    if isinstance(image, JpegImageFile):
        image.draft("L", None)  # the stored Y plane: no color conversion, half the time
    image.load()
    gray = _narrow_gray(image)
    if isinstance(image, JpegImageFile):
        jpeg.check_end(data, gray)
    return _upright(gray, _orientation(image))


def _narrow_gray(image: Image.Image) -> Gray:
    if image.mode.startswith("I;16") or image.mode in _WIDE_MODES:
        samples = np.asarray(image)
        gray = rescale(samples)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            gray[samples == transparent] = 0
        tags = getattr(image, "tag_v2", {})
        # Pillow inverts min-is-white for 8 bits only (TIFF 6.0, section 4).
        return 255 - gray if tags.get(_PHOTOMETRIC_TAG) == 0 else gray
    if image.has_transparency_data:
        return _over_black(image)
    if image.mode not in ("L", "1", "RGB"):
        image = image.convert("RGB")
    if image.mode != "L":
        image = image.convert("L")
    return np.array(image)  # a copy: asarray would be read-only


def _over_black(image: Image.Image) -> Gray:
    premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    rgba = (image.convert(premultiplied) if premultiplied else image).convert("RGBA")
    alpha = np.asarray(rgba.getchannel("A")).astype(np.uint16)
    gray = np.asarray(rgba.convert("RGB").convert("L")).astype(np.uint16)
    if isinstance(image, BmpImageFile | TiffImageFile) and not alpha.any():
        return gray.astype(np.uint8)  # writers that know no alpha leave these bytes at zero
    return ((gray * alpha + 127) // 255).astype(np.uint8)


def _luma(samples: npt.NDArray[np.uint16]) -> Gray:
    gray = samples[..., :3].astype(np.float32) @ LUMA
    if samples.shape[2] == 4:
        gray = gray * (samples[..., 3].astype(np.float32) / 65535)
    return rescale(np.rint(gray).astype(np.uint16))


def _orientation(image: ImageFile.ImageFile) -> int:
    if isinstance(image, TiffImageFile):
        return 1  # Pillow has applied its tag while loading
    if not any(key in image.info for key in ("exif", "xmp", "XML:com.adobe.xmp")):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (SyntaxError, struct.error, TypeError, ValueError, OSError, KeyError):
        return 1  # a damaged note, with intact pixels; upright is what every viewer assumes


def _damage(error: Exception, name: str, data: bytes) -> str:
    message = str(error).lower()
    if "truncated" in message or isinstance(error, EOFError | struct.error):
        return f"truncated {label(name)}: the data end early"
    if "cannot load this image" in message:
        return f"truncated {label(name)}: ends before the pixel data"
    foreign = name == "jpeg" and jpeg.is_foreign(data)
    if foreign or any(words in message for words in _OF_ANOTHER_KIND):
        return f"{label(name)} of a kind that is not readable here"
    if isinstance(error, SyntaxError):
        return f"damaged {label(name)}: unreadable header"
    return f"damaged {label(name)}: the pixel data cannot be decoded"
