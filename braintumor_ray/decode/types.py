"""What decoding takes and gives: limits, volumes, pixels or a reason; the contract of a reader."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from braintumor_ray.decode.options import DEFAULT_VOLUMES as DEFAULT_VOLUMES  # noqa: PLC0414
from braintumor_ray.decode.options import VolumeOptions as VolumeOptions  # noqa: PLC0414
from braintumor_ray.errors import BrainTumorError
from braintumor_ray.types import GrayImage

Gray = GrayImage


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


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """What is wanted of one file; the options of every worker of a decoding process.

    Attributes:
        frames: which frames, from 0.
        limits: what the file may cost.
        volumes: how a volume becomes frames.
    """

    frames: tuple[int, ...] = (0,)
    limits: DecodeLimits = DEFAULT_LIMITS
    volumes: VolumeOptions = DEFAULT_VOLUMES


@dataclass(frozen=True, eq=False)
class Decoded:
    """The pixels of one frame, or why there are none: exactly one of `gray` and `reason`.

    Attributes:
        gray: uint8 (H, W), C-contiguous, upright (stored orientation applied), 0 is black.
        reason: One short sentence, the same for the same fault, without paths or tag values.
        format: ``jpeg``, ``png``, ``tiff``, ``bmp``, ``dicom``, ``nifti`` or ``matlab``; None if
            unknown.
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
            `IdentityHash` may take on (hence not shown); ``label``, where a file holds its own;
            ``unread``, the keywords of attributes that could not be parsed, joined by spaces.
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


def label(name: str | None) -> str:
    """How a reason writes a format's name."""
    return {None: "file", "nifti": "NIfTI"}.get(name) or str(name).upper()
