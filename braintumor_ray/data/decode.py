"""The one door from bytes to pixels: uint8 gray (H, W), or a true reason why not.

Training, the archive job and serving all come through `decode`, so what is served is what was
trained. Content decides, never the extension: a PNG named ``.jpg`` is read as PNG.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from braintumor_ray.data.sniff import sniff, stranger
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
Plane = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True)
class VolumeOptions:
    """How a volume becomes frames; a DICOM file and a raster file have their own.

    Attributes:
        plane: The slices of a NIfTI volume: feet to head, back to front, or left to right.
        volume: Which volume of a 4-D NIfTI, from 0.
    """

    plane: Plane = "axial"
    volume: int = 0

    def mark(self, location: str) -> str:
        """A path or URI that says how its volume is cut; unchanged for the default way.

        A catalog's rows carry it, so that whoever reads them later cuts the same slices, and
        slices of two planes are never taken for the same scan.
        """
        if self == DEFAULT_VOLUMES:
            return location
        return f"{location}#plane={self.plane}&volume={self.volume}"


DEFAULT_VOLUMES = VolumeOptions()
_MARK = re.compile(r"#plane=(axial|coronal|sagittal)&volume=(\d+)$")


def unmark(location: str) -> tuple[str, VolumeOptions]:
    """The inverse of `VolumeOptions.mark`."""
    found = _MARK.search(location)
    if found is None:
        return location, DEFAULT_VOLUMES
    return location[: found.start()], VolumeOptions(cast(Plane, found[1]), int(found[2]))


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
        tags: What else the header says: ``modality``, ``plane`` and ``sequence`` in the clear,
            and the ids ``patient``, ``study``, ``series`` and ``sop``, which only an
            `IdentityHash` may take on (hence not shown).
    """

    format: str | None = None
    mode: str | None = None
    width: int = 0
    height: int = 0
    frames: int = 0
    reason: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict, repr=False)


FrameDecoder = Callable[[int], Decoded]


class Reader(NamedTuple):
    """What a format brings; whatever is raised, the functions of this module give as a reason.

    Attributes:
        open: Parses a file once and returns what decodes its frames by their number.
        probe: Reads the header.
    """

    open: Callable[[bytes, str, DecodeLimits, VolumeOptions], FrameDecoder]
    probe: Callable[[bytes, str, VolumeOptions], Probe]


def reader(name: str) -> Reader | None:
    """The reader of a format, imported when first needed; a new format is one more case."""
    if name in ("jpeg", "png", "tiff", "bmp"):
        from braintumor_ray.data import raster

        return Reader(raster.open_raster, raster.probe_raster)
    if name == "dicom":
        from braintumor_ray.data import dicom

        return Reader(dicom.open_dicom, dicom.probe_dicom)
    if name == "nifti":
        from braintumor_ray.data import nifti

        return Reader(nifti.open_nifti, nifti.probe_nifti)
    return None


def decode(
    data: bytes | None,
    *,
    frame: int = 0,
    limits: DecodeLimits = DEFAULT_LIMITS,
    volumes: VolumeOptions = DEFAULT_VOLUMES,
) -> Decoded:
    """Turn a file's bytes into uint8 gray (H, W), or say why not. Never raises.

    Args:
        data: The whole file; None if it is missing or could not be read.
        frame: Which frame of a multi-frame file, from 0.
        limits: What the file may cost.
        volumes: How a volume becomes frames.

    Returns:
        Pixels with status ``ok``, or a reason with status ``quarantined`` or ``skipped``.
    """
    return decode_frames(data, [frame], limits=limits, volumes=volumes)[0]


def decode_frames(
    data: bytes | None,
    frames: Sequence[int],
    *,
    limits: DecodeLimits = DEFAULT_LIMITS,
    volumes: VolumeOptions = DEFAULT_VOLUMES,
) -> list[Decoded]:
    """Some frames of one file, which is parsed once; otherwise as `decode`.

    Returns:
        One result per wanted frame, in order. A frame that cannot be read costs only itself.
    """
    name: str | None = None
    try:
        content = _content(data)
        limits.check_bytes(len(content))
        name = sniff(content)
        opened = _reader(content, name).open(content, str(name), limits, volumes)
    except Exception as error:  # the promise of this door: a file never raises
        return [_quarantined(error, name)] * len(frames)
    return [_decode_frame(opened, frame, name) for frame in frames]


def probe(head: bytes | None, *, volumes: VolumeOptions = DEFAULT_VOLUMES) -> Probe:
    """Read a file's header without decoding pixels. Never raises.

    Args:
        head: The whole file or its first bytes. 64 KiB is enough for most files; a TIFF keeps its
            header anywhere and needs the whole file. Where `reason` is set for a part, ask again
            with the whole.
        volumes: How a volume becomes frames.
    """
    name: str | None = None
    try:
        content = _content(head)
        name = sniff(content)
        return _reader(content, name).probe(content, str(name), volumes)
    except Exception as error:  # as in `decode`
        return Probe(format=name, reason=_reason(error, name))


_UNKNOWN = "not an image in a known format"


def _decode_frame(opened: FrameDecoder, frame: int, name: str | None) -> Decoded:
    try:
        return opened(frame)
    except Exception as error:  # as in `decode_frames`
        return _quarantined(error, name)


def _quarantined(error: Exception, name: str | None) -> Decoded:
    return Decoded(reason=_reason(error, name), format=name, status="quarantined")


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
        words = stranger(data)
        raise Unreadable(f"not an image: starts with {words}" if words else _UNKNOWN)
    found = reader(name)
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
