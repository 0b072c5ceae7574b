"""The one door from bytes to pixels: uint8 gray (H, W), or a true reason why not.

Training, the archive job and serving all come through `decode`, so what is served is what was
trained. Content decides, never the extension: a PNG named ``.jpg`` is read as PNG.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from braintumor_ray.errors import BrainTumorError

Gray = npt.NDArray[np.uint8]
Status = Literal["ok", "quarantined", "skipped"]


class Unreadable(BrainTumorError):
    """Why a file cannot become pixels: one stable sentence without paths or tag values."""


@dataclass(frozen=True)
class DecodeLimits:
    """What a file may cost; both are checked before any pixel is allocated.

    Attributes:
        max_bytes: Largest file. 256 MiB holds a 4-D volume of ordinary size.
        max_pixels: Most pixels in one frame. 64 million is 8000 x 8000: over fifty times the
            largest MR matrix in use (1024 x 1024), more than a film scan, and 256 MB as RGBA.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 64_000_000

    def check_bytes(self, n_bytes: int) -> None:
        """Refuse a file of `n_bytes` bytes that is too large.

        Raises:
            Unreadable: if it is over `max_bytes`.
        """
        if n_bytes > self.max_bytes:
            raise Unreadable(f"{n_bytes} bytes is over the limit of {self.max_bytes}")

    def check_pixels(self, width: int, height: int) -> None:
        """Refuse a frame of `width` x `height` pixels that is too large.

        Raises:
            Unreadable: if it is over `max_pixels`.
        """
        if width * height > self.max_pixels:
            raise Unreadable(
                f"{width} x {height} pixels is over the limit of {self.max_pixels}",
            )


DEFAULT_LIMITS = DecodeLimits()


@dataclass(frozen=True, eq=False)
class Decoded:
    """The pixels of one frame, or why there are none: exactly one of `gray` and `reason`.

    Attributes:
        gray: uint8 (H, W), C-contiguous, upright (stored orientation applied), 0 is black.
        reason: One short sentence, the same for the same fault, without paths or tag values.
        format: ``jpeg``, ``png``, ``tiff``, ``bmp``, ``dicom`` or ``nifti``; None if unknown.
        mode: How samples are stored; for raster files Pillow's mode string (``L``, ``RGB``...).
        status: ``ok``; ``quarantined`` (cannot be read); ``skipped`` (readable, not to be scored).
    """

    gray: Gray | None = None
    reason: str | None = None
    format: str | None = None
    mode: str | None = None
    status: Status = "ok"

    def __post_init__(self) -> None:
        assert (self.gray is None) != (self.reason is None)
        assert (self.gray is not None) == (self.status == "ok")


@dataclass(frozen=True)
class Probe:
    """What a file's header says; without decoding a pixel.

    Attributes:
        format: As in `Decoded`; None if unknown.
        mode: As in `Decoded`; None where `reason` is set.
        width: Columns of the upright image; 0 where `reason` is set.
        height: Rows of the upright image; 0 where `reason` is set.
        frames: Frames in the file (pages of a TIFF); 0 where `reason` is set.
        reason: Why the header could not be read, else None.
    """

    format: str | None = None
    mode: str | None = None
    width: int = 0
    height: int = 0
    frames: int = 0
    reason: str | None = None


class Reader(NamedTuple):
    """What a format brings: both functions may raise; `decode` and `probe` give the reason."""

    decode: Callable[[bytes, str, int, DecodeLimits], Decoded]
    probe: Callable[[bytes, str], Probe]


def readers() -> dict[str, Reader]:
    """The formats that can be read, each with its reader; a new format is one more line."""
    from braintumor_ray.data import raster  # raster imports this module's types

    image = Reader(raster.decode_raster, raster.probe_raster)
    return {"jpeg": image, "png": image, "tiff": image, "bmp": image}


def decode(data: bytes | None, *, frame: int = 0, limits: DecodeLimits = DEFAULT_LIMITS) -> Decoded:
    """Turn a file's bytes into uint8 gray (H, W), or say why not. Never raises.

    Args:
        data: The whole file; None if it is missing or could not be read.
        frame: Which frame of a multi-frame file, from 0.
        limits: What the file may cost.

    Returns:
        Pixels with status ``ok``, or a reason with status ``quarantined`` or ``skipped``.
    """
    name: str | None = None
    try:
        content = _content(data)
        limits.check_bytes(len(content))
        name = sniff(content)
        return _reader(content, name).decode(content, str(name), frame, limits)
    except Exception as error:  # the promise of this door: a file never raises
        return Decoded(reason=_reason(error, name), format=name, status="quarantined")


def probe(head: bytes | None) -> Probe:
    """Read a file's header without decoding pixels. Never raises.

    Args:
        head: The whole file or its first bytes. 64 KiB is enough for most JPEG, PNG and BMP
            files; a TIFF keeps its header anywhere and needs the whole file. Where `reason` is
            set for a part, ask again with the whole.
    """
    name: str | None = None
    try:
        content = _content(head)
        name = sniff(content)
        return _reader(content, name).probe(content, str(name))
    except Exception as error:  # as in `decode`
        return Probe(format=name, reason=_reason(error, name))


def sniff(data: bytes) -> str | None:
    """The format's name by content (see `Decoded.format`), or None; reads 400 bytes at most."""
    if data[128:132] == b"DICM":  # PS3.10: the preamble before it may look like a TIFF
        return "dicom"
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "bmp"
    if _is_nifti(_gunzipped_head(data)):
        return "nifti"
    return None


_MAGIC = (
    (b"\xff\xd8", "jpeg"),
    (b"\x89PNG", "png"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),  # BigTIFF
    (b"MM\0+", "tiff"),
)
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)  # "BM" alone begins many a text
_STRANGERS = (
    (b"PK", "'PK' (zip archive)"),
    (b"%PDF", "'%PDF' (PDF document)"),
    (b"GIF8", "'GIF8' (GIF is not readable here)"),
    (b"RIFF", "'RIFF' (WebP and other RIFF files are not readable here)"),
    (b"\x1f\x8b", "the gzip magic, and no NIfTI inside"),
    (b"\0\0\0\x0cjP  ", "the JPEG 2000 magic (readable here only inside DICOM)"),
    (b"\x7fELF", "'ELF' (program)"),
    (b"<", "'<' (markup text)"),
    (b"\0\0\0\0", "zero bytes"),
)
_NIFTI_HEAD = 348


def _content(data: object) -> bytes:
    if data is None:
        raise Unreadable("file missing or unreadable")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise Unreadable(f"not bytes but {type(data).__name__}")
    content = data if isinstance(data, bytes) else bytes(data)
    if not content:
        raise Unreadable("empty file (0 bytes)")
    return content


def _reader(data: bytes, name: str | None) -> Reader:
    if name is None:
        for magic, words in _STRANGERS:
            if data.startswith(magic):
                raise Unreadable(f"not an image: starts with {words}")
        raise Unreadable("not an image in a known format")
    found = readers().get(name)
    if found is None:
        raise Unreadable(f"{label(name)} is not readable here")
    return found


def label(name: str | None) -> str:
    """How a reason writes a format's name."""
    return {None: "file", "nifti": "NIfTI"}.get(name) or str(name).upper()


def _reason(error: Exception, name: str | None) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, MemoryError):
        return f"{label(name)} needs more memory than this process may use"
    # The text of a foreign error may quote the file, and differs from release to release.
    return f"damaged {label(name)}: {type(error).__name__} while reading"


def _gunzipped_head(data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data[:_NIFTI_HEAD]
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data[:4096], _NIFTI_HEAD)
    except zlib.error:
        return b""  # not gzip after all: no head to recognise


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")
