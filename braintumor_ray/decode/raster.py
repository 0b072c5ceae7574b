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
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from braintumor_ray.decode import jpeg
from braintumor_ray.decode.intensity import robust_range, to_gray, why_blank
from braintumor_ray.decode.tiff import Page, is_odd, odd_pages, samples_of
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
_PHOTOMETRIC_TAG = 262
_WIDE_MODES = ("I", "F")
_LUMA_BGR = np.array([0.114, 0.587, 0.299], np.float32)  # ITU-R BT.601
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
    """What decodes the pages of a raster file; see `decode_raster`."""
    return partial(decode_raster, data, name, limits)


def decode_raster(data: bytes, name: str, limits: DecodeLimits, frame: int) -> Decoded:
    """Decode one frame of a raster file.

    Args:
        data: The whole file.
        name: ``jpeg``, ``png``, ``tiff`` or ``bmp``.
        limits: `max_pixels` is checked on the header, before pixels are allocated.
        frame: Page of a TIFF; other formats have frame 0 only.

    Raises:
        Unreadable: if the file is damaged, truncated, too large, or has no such frame.
    """
    try:
        if name == "png":
            check_png(data)
        gray, mode = _decoded(data, name, limits, frame)
        blank = why_blank(gray)
        if blank:
            return Decoded(None, blank, name, mode, "skipped")
        return Decoded(gray, format=name, mode=mode)
    except Image.DecompressionBombError as error:  # Pillow's own limit, for TIFF only
        raise Unreadable("more pixels than Pillow's own limit allows") from error
    except (OSError, SyntaxError, EOFError, struct.error) as error:  # what Pillow raises on damage
        raise Unreadable(_damage(error, name)) from error


def _decoded(data: bytes, name: str, limits: DecodeLimits, frame: int) -> tuple[Gray, str]:
    """Gray image and mode of one frame."""
    pages = odd_pages(data) if name == "tiff" else []
    if pages:
        _check_frame(frame, len(pages))
        data, page, frame = pages[frame].data, pages[frame], 0
        if is_odd(page):
            return _odd_tiff_gray(page, limits), page.mode
    plain = jpeg.plain_gray(data, limits) if name == "jpeg" and not frame else None
    if plain:
        jpeg.check_end(data, plain[0])
        return plain
    image = _PLUGINS[name](io.BytesIO(data))
    if frame:
        _check_frame(frame, _frames(image))
        image.seek(frame)
    limits.check_pixels(*image.size)
    mode = image.mode
    return _gray(image, data, frame), mode


def _odd_tiff_gray(page: Page, limits: DecodeLimits) -> Gray:
    gray = rescale(samples_of(page, limits))
    gray = 255 - gray if page.photometric == 0 else gray
    return np.ascontiguousarray(_UPRIGHT.get(page.orientation, np.asarray)(gray))


def _check_frame(frame: int, count: int) -> None:
    if not 0 <= frame < count:
        raise Unreadable(f"frame {frame} is out of range: the file has {count}")


def probe_raster(data: bytes, name: str, volumes: VolumeOptions) -> Probe:
    """Read a raster file's header; width and height are those of the upright image.

    Raises:
        Unreadable: if the header is damaged, or not wholly in `data`.
    """
    try:
        pages = odd_pages(data) if name == "tiff" else []
        if pages:
            return _probe_odd(pages)
        image = _PLUGINS[name](io.BytesIO(data))
        width, height = image.size
        if name != "tiff" and _orientation(image) >= 5:  # Pillow has turned a TIFF's size itself
            width, height = height, width
        return Probe(name, image.mode, width, height, frames=_frames(image))
    except (OSError, SyntaxError, EOFError, struct.error) as error:
        raise Unreadable(_damage(error, name)) from error


def _probe_odd(pages: list[Page]) -> Probe:
    first = pages[0]
    size = (first.height, first.width) if first.orientation >= 5 else (first.width, first.height)
    return Probe("tiff", first.mode, *size, frames=len(pages))


def check_png(data: bytes) -> None:
    """Check what Pillow does not: every chunk's checksum, and that the file has its end.

    Raises:
        Unreadable: on a bad checksum, or if the file ends before its IEND chunk.
    """
    position, view = 8, memoryview(data)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            raise Unreadable("truncated PNG: ends inside a chunk")
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[position + 4 : end - 4]) != stored:
            known = kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND")
            where = kind.decode() if known else "an ancillary chunk"
            raise Unreadable(f"PNG: bad checksum in {where}")
        if kind == b"IEND":
            return
        position = end
    raise Unreadable("truncated PNG: no IEND chunk")


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


def _gray(image: ImageFile.ImageFile, data: bytes, frame: int) -> Gray:
    if isinstance(image, JpegImageFile):
        image.draft("L", None)  # the stored Y plane: no color conversion, half the time
    if image.mode in ("RGB", "RGBA", "LA") and ";16" in str(image.tile[0].args):
        gray = _wide_color_gray(data, frame)
    else:
        image.load()
        gray = _narrow_gray(image)
    if isinstance(image, JpegImageFile):
        jpeg.check_end(data, gray)
    return np.ascontiguousarray(_UPRIGHT.get(_orientation(image), np.asarray)(gray))


def _narrow_gray(image: Image.Image) -> Gray:
    if image.mode.startswith("I;16") or image.mode in _WIDE_MODES:
        gray = rescale(np.asarray(image))
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


def _wide_color_gray(data: bytes, frame: int) -> Gray:
    import cv2  # a tenth of a second to import, for a rare kind of file

    flags = cv2.IMREAD_UNCHANGED
    _, pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), flags, range=(frame, frame + 1))
    if not pages or pages[0].ndim != 3 or pages[0].dtype != np.uint16:
        raise Unreadable("16-bit color in a layout that is not readable here")
    samples = pages[0]
    gray = samples[..., :3].astype(np.float32) @ _LUMA_BGR
    if samples.shape[2] == 4:
        gray = gray * (samples[..., 3].astype(np.float32) / 65535)
    return rescale(np.rint(gray).astype(np.uint16))


def _orientation(image: ImageFile.ImageFile) -> int:
    if not any(key in image.info for key in ("exif", "xmp", "XML:com.adobe.xmp")):
        return 1  # TIFF: Pillow has applied its tag while loading
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (SyntaxError, struct.error, TypeError, ValueError, OSError, KeyError):
        return 1  # a damaged note, with intact pixels; upright is what every viewer assumes


def _damage(error: Exception, name: str) -> str:
    message = str(error).lower()
    if "truncated" in message or isinstance(error, EOFError | struct.error):
        return f"truncated {label(name)}: the data end early"
    if "cannot load this image" in message:
        return f"truncated {label(name)}: ends before the pixel data"
    if any(words in message for words in ("unsupported", "unknown pixel mode", "unknown data org")):
        return f"{label(name)} of a kind that is not readable here"
    if isinstance(error, SyntaxError):
        return f"damaged {label(name)}: unreadable header"
    return f"damaged {label(name)}: the pixel data cannot be decoded"
