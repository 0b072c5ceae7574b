"""The one door from bytes to pixels: uint8 gray (H, W), or a true reason why not.

Training, the archive job and serving all come through `decode`, so what is served is what was
trained. Content decides, never the extension: a PNG named ``.jpg`` is read as PNG.
"""

from braintumor_ray.decode.sniff import foreign_format, sniff
from braintumor_ray.decode.types import (
    DEFAULT_LIMITS,
    DEFAULT_VOLUMES,
    Decoded,
    DecodeLimits,
    DecodeOptions,
    FrameDecoder,
    Probe,
    Reader,
    Unreadable,
    VolumeOptions,
    label,
)


def reader(name: str) -> Reader | None:
    """The reader of a format, imported when first needed; a new format is one more case."""
    if name in ("jpeg", "png", "tiff", "bmp"):
        from braintumor_ray.decode import raster

        return Reader(raster.open_raster, raster.probe_raster)
    if name == "dicom":
        from braintumor_ray.decode import dicom

        return Reader(dicom.open_dicom, dicom.probe_dicom)
    if name == "nifti":
        from braintumor_ray.decode import nifti

        return Reader(nifti.open_nifti, nifti.probe_nifti)
    if name == "matlab":
        from braintumor_ray.decode import matlab

        return Reader(matlab.open_matlab, matlab.probe_matlab)
    return None


def decode(
    data: bytes | None,
    *,
    frame: int = 0,
    limits: DecodeLimits = DEFAULT_LIMITS,
    volumes: VolumeOptions = DEFAULT_VOLUMES,
) -> Decoded:
    """Turn a file's bytes into uint8 gray (H, W), or give the reason why not. Never raises.

    Args:
        data: The whole file; None if it is missing or could not be read.
        frame: Which frame of a multi-frame file, from 0.
        limits: What the file may cost.
        volumes: How a volume becomes frames.

    Returns:
        Pixels with status ``ok``, or a reason with status ``quarantined`` or ``skipped``.
    """
    wanted = DecodeOptions(frames=(frame,), limits=limits, volumes=volumes)
    return decode_frames(data, wanted)[0]


def decode_frames(data: bytes | None, wanted: DecodeOptions) -> list[Decoded]:
    """Some frames of one file, which is parsed once; otherwise as `decode`.

    Returns:
        One result per wanted frame, in order. A frame that cannot be read costs only itself.
    """
    name: str | None = None
    try:
        content = _content(data)
        wanted.limits.check_bytes(len(content))
        name = sniff(content)
        opened = _reader(content, name).open(content, str(name), wanted.limits, wanted.volumes)
    except Exception as error:  # the promise of this door: a file never raises
        return [_quarantined(error, name)] * len(wanted.frames)
    return [_decode_frame(opened, frame, name) for frame in wanted.frames]


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
        words = foreign_format(data)
        raise Unreadable(f"not an image: starts with {words}" if words else _UNKNOWN)
    found = reader(name)
    if found is None:
        raise Unreadable(f"{label(name)} is not readable here")
    return found


def _reason(error: Exception, name: str | None) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, MemoryError):
        return f"{label(name)} needs more memory than this process may use"
    # The text of a foreign error may quote the file, and differs from release to release.
    return f"damaged {label(name)}: {type(error).__name__} while reading"
