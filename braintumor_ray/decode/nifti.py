"""NIfTI to uint8 gray slices by nibabel: canonical orientation, one range for the whole volume.

Slices are shown as radiologists look at them and as DICOM stores them: axial from the feet, the
nose up and the patient's right on the left; coronal from the front, the head up; sagittal the head
up and the nose on the left. Voxels that are not square stay so: the network's input is square.
"""

import gzip
import io
import logging
import math
import struct
import zlib
from functools import lru_cache
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from braintumor_ray.choices import Plane
from braintumor_ray.decode.intensity import Range, robust_range, to_gray, why_blank
from braintumor_ray.decode.types import (
    Decoded,
    DecodeLimits,
    FrameDecoder,
    Probe,
    Unreadable,
    VolumeOptions,
)

Shape = tuple[int, int, int]
# Of a canonical volume (right, anterior, superior): the axes of frames, rows and columns.
_SLICED: dict[Plane, Shape] = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 540  # NIfTI-2; NIfTI-1 has 348
_LONGEST_SIDE = 65_535
_FARTHEST = 2**62  # no file is so long: reading there finds nothing
_CODES = range(1, 6)  # of an affine; 0 is none, and others have no meaning (NIfTI-1.1)
_QUATERNION_EXCESS = 0.01  # of its length; rounding to float32 leaves 1e-6
_PART = 2**20  # bytes of a stream that are read on at a time
_VOLUME_FRAMES = 4  # a volume may hold as many voxels as this many of the largest frames


def open_nifti(
    data: bytes, name: str, limits: DecodeLimits, volumes: VolumeOptions
) -> FrameDecoder:
    """Parse a NIfTI file once and load one volume; what is returned cuts its slices.

    Args:
        data: the whole file, gzipped or not.
        name: ``nifti``.
        limits: checked on the header, before voxels are allocated.
        volumes: the plane of the slices and, of a 4-D file, the volume.

    Raises:
        Unreadable: damaged, truncated, too large, or a kind of NIfTI that is not a gray volume.
    """
    header = _header(_head(data))
    shape = _shape(header, volumes)
    _check_size(shape, limits)
    mode = _mode(header)
    slices, between = _load(data, header, shape, volumes, limits)

    def decode_frame(frame: int) -> Decoded:
        if not 0 <= frame < len(slices):
            raise Unreadable(f"frame {frame} is out of range: the volume has {len(slices)}")
        gray = to_gray(slices[frame], between)
        blank = why_blank(gray)
        if blank:
            return Decoded(None, blank, name, mode, "skipped")
        return Decoded(np.ascontiguousarray(gray), format=name, mode=mode)

    return decode_frame


def probe_nifti(data: bytes, name: str, volumes: VolumeOptions) -> Probe:
    """Read a NIfTI header; the first 4 KiB of the file are enough.

    Raises:
        Unreadable: as `open_nifti`.
    """
    header = _header(_head(data))
    shape = _shape(header, volumes)
    axes = _orientation(header)[:, 0].astype(int)
    canonical = [shape[int(np.flatnonzero(axes == axis)[0])] for axis in range(3)]
    frames, height, width = (canonical[axis] for axis in _SLICED[volumes.plane])
    tags = {"plane": volumes.plane}
    return Probe(name, _mode(header), width, height, frames, tags=tags)


def _head(data: bytes) -> bytes:
    if not data.startswith(_GZIP):
        return data[:_HEADER_BYTES]
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data[:4096], _HEADER_BYTES)
    except zlib.error as error:
        raise Unreadable("damaged NIfTI: the gzip stream cannot be inflated") from error


def _header(head: bytes) -> Any:  # noqa: ANN401 - nibabel is not typed
    """The header alone, without its extensions and unchecked: what is odd is mended where read."""
    _quiet_nibabel()
    if head[344:347] != b"n+1" and head[4:7] != b"n+2":
        raise Unreadable(
            "NIfTI or Analyze header without its voxels (a .hdr/.img pair); convert it to .nii"
        )
    kind = nibabel.Nifti2Header if head[4:7] == b"n+2" else nibabel.Nifti1Header
    if len(head) < kind.sizeof_hdr:
        raise Unreadable("truncated NIfTI: ends inside the header")
    try:
        return kind(head[: kind.sizeof_hdr], check=False)
    except (HeaderDataError, WrapStructError) as error:
        raise Unreadable("damaged NIfTI: unreadable header") from error


def _shape(header: Any, volumes: VolumeOptions) -> Shape:  # noqa: ANN401
    """Voxels along the three axes, as stored."""
    *space, repeats = _sides(header)
    if not 0 <= volumes.volume < repeats:
        raise Unreadable(f"volume {volumes.volume} is out of range: the file has {repeats}")
    return space[0], space[1], space[2]


def _sides(header: Any) -> list[int]:  # noqa: ANN401
    """Voxels along the three axes, as stored, and the number of volumes."""
    rank = int(header["dim"][0])
    sides = [int(side) for side in header["dim"][1 : rank + 1]] if 1 <= rank <= 7 else []
    # A size of zero beyond the second counts as one, as in the reference library (nifti1_io).
    stored = [side if number < 2 else max(side, 1) for number, side in enumerate(sides)]
    if not stored or min(stored) < 1 or max(stored) > _LONGEST_SIDE:
        raise Unreadable("damaged NIfTI: impossible dimensions")
    if any(side > 1 for side in stored[4:]):
        raise Unreadable("NIfTI with more than four dimensions is not readable here")
    return (stored + [1] * 4)[:4]


def _orientation(header: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401
    """Which anatomical axis each stored one runs along, and which way: (3, 2) as of nibabel.

    By the sform where it is coded and can be used, else by the qform, else, where neither is
    coded, as nibabel takes Analyze files.
    """
    coded = [
        matrix(header)
        for code, matrix in (("sform_code", _sform), ("qform_code", _qform))
        if header[code] in _CODES
    ]
    for directions in coded or [np.diag([-1.0 if header.default_x_flip else 1.0, 1, 1])]:
        if np.isfinite(directions).all():
            affine = np.eye(4)
            affine[:3, :3] = directions
            found: npt.NDArray[np.float64] = nibabel.io_orientation(affine)
            if np.isfinite(found).all():
                return found
    raise Unreadable("damaged NIfTI: its affine gives no orientation")


def _sform(header: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401
    rows = [header[row][:3] for row in ("srow_x", "srow_y", "srow_z")]
    return np.array(rows, np.float64)


def _qform(header: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401
    """The rotation alone: lengths do not matter for which way an axis runs.

    A quaternion that rounding made longer than one is a turn by 180 degrees (nifti1_io does so);
    one that is far too long is none.
    """
    imaginary = np.array([header[f"quatern_{axis}"] for axis in "bcd"], np.float64)
    length = math.sqrt(float(imaginary @ imaginary))
    if not length <= 1 + _QUATERNION_EXCESS:  # also where it is not a number
        return np.full((3, 3), np.nan)
    imaginary /= max(length, 1.0)
    real = math.sqrt(max(0.0, 1.0 - float(imaginary @ imaginary)))
    turned: npt.NDArray[np.float64] = nibabel.quaternions.quat2mat([real, *imaginary])
    return turned * [1, 1, -1 if header["pixdim"][0] < 0 else 1]


def _check_size(shape: Shape, limits: DecodeLimits) -> None:
    longest, middle, _ = sorted(shape, reverse=True)
    limits.check_pixels(longest, middle)
    if math.prod(shape) > _VOLUME_FRAMES * limits.max_pixels:
        raise Unreadable(
            f"{' x '.join(map(str, shape))} voxels is over the limit of "
            f"{_VOLUME_FRAMES * limits.max_pixels}"
        )


def _mode(header: Any) -> str:  # noqa: ANN401
    try:
        kind = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise Unreadable("NIfTI with an unknown kind of voxels") from error
    if kind.kind not in "iuf":
        raise Unreadable("NIfTI with color or complex voxels is not readable here")
    return str(kind.newbyteorder("="))


def _load(
    data: bytes,
    header: Any,  # noqa: ANN401
    shape: Shape,
    volumes: VolumeOptions,
    limits: DecodeLimits,
) -> tuple[npt.NDArray[Any], Range]:
    """The slices (n, H, W) as they are looked at, and the range of the whole volume."""
    stream: Any = io.BytesIO(data)
    if data.startswith(_GZIP):
        stream = gzip.GzipFile(fileobj=stream)
    stored = _voxels(stream, header, shape, volumes.volume + 1)
    try:
        voxels = np.asarray(stored[..., volumes.volume])
        furthest = stored.offset + _stated_bytes(header) + limits.max_bytes
        too_long = data.startswith(_GZIP) and not _reaches_end(stream, furthest)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise Unreadable("truncated or damaged NIfTI: the voxels cannot be read") from error
    if too_long:
        raise Unreadable("NIfTI whose gzip stream goes on far behind its voxels")
    eight_bit = voxels.dtype == np.uint8
    between = Range(0.0, 255.0) if eight_bit else robust_range(voxels)
    upright = nibabel.orientations.apply_orientation(voxels, _orientation(header))
    return upright.transpose(_SLICED[volumes.plane])[:, ::-1, ::-1], between


def _reaches_end(stream: Any, furthest: int) -> bool:  # noqa: ANN401
    """Read a gzip stream on to its end, where its checksum is: nibabel stops at the last voxel.

    Returns:
        False where it goes on behind `furthest`.

    Raises:
        OSError, EOFError, zlib.error: the stream is damaged.
    """
    while stream.read(_PART):
        if stream.tell() > furthest:
            return False
    return True


def _stated_bytes(header: Any) -> int:  # noqa: ANN401
    """Bytes of the voxels of all volumes."""
    return math.prod(_sides(header)) * int(header.get_data_dtype().itemsize)


def _voxels(stream: Any, header: Any, shape: Shape, volumes: int) -> Any:  # noqa: ANN401
    """A proxy of the voxels: only the wanted volume of a 4-D file is kept."""
    slope, intercept = (float(header[key]) for key in ("scl_slope", "scl_inter"))
    if not math.isfinite(slope) or slope == 0:  # the standard's sign for no scaling
        slope, intercept = 1.0, 0.0
    scaling = (slope, intercept if math.isfinite(intercept) else 0.0)
    offset = _offset(header, stream)
    return ArrayProxy(stream, ((*shape, volumes), header.get_data_dtype(), offset, *scaling))


def _offset(header: Any, stream: Any) -> int:  # noqa: ANN401
    """Where voxels begin; never inside the header, which an offset of zero would mean."""
    least = header.sizeof_hdr + 4
    stated = float(header["vox_offset"])
    if stated >= least and math.isfinite(stated):
        return int(min(stated, _FARTHEST))
    try:
        return _behind_extensions(stream, least, header.endianness)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise Unreadable("truncated or damaged NIfTI: it ends before its voxels") from error


def _behind_extensions(stream: Any, start: int, order: str) -> int:  # noqa: ANN401
    """The end of the header's extensions (NIfTI-1.1, extended header)."""
    stream.seek(start - 4)
    more = stream.read(4)[:1] not in (b"", b"\0")
    while more:
        stream.seek(start)
        size, code = struct.unpack(f"{order}ii", stream.read(8))
        more = size >= 16 and size % 16 == 0 and code % 2 == 0 and code >= 0
        start += size if more else 0
    return start


@lru_cache(maxsize=1)
def _quiet_nibabel() -> None:
    """Its log lines on odd headers are not the operator's."""
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
