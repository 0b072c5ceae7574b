"""NIfTI to uint8 gray slices by nibabel: canonical orientation, one range for the whole volume.

Slices are shown as radiologists look at them and as DICOM stores them: axial from the feet, the
nose up and the patient's right on the left; coronal from the front, the head up; sagittal the head
up and the nose on the left. Voxels that are not square stay so: the network's input is square.
"""

import gzip
import io
import logging
import math
import zlib
from functools import lru_cache
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from braintumor_ray.decode.intensity import Range, is_blank, robust_range, to_gray
from braintumor_ray.decode.types import (
    Decoded,
    DecodeLimits,
    FrameDecoder,
    Plane,
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
    slices, between = _load(data, shape, volumes)

    def decode_frame(frame: int) -> Decoded:
        if not 0 <= frame < len(slices):
            raise Unreadable(f"frame {frame} is out of range: the volume has {len(slices)}")
        gray = to_gray(slices[frame], between)
        if is_blank(gray):
            return Decoded(None, "blank slice", name, mode, "skipped")
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
    """The header alone, without its extensions."""
    _quiet_nibabel()
    if head[344:347] == b"ni1" or head[4:7] == b"ni2":
        raise Unreadable("NIfTI header without its voxels (a .hdr/.img pair); convert it to .nii")
    kind = nibabel.Nifti2Header if head[4:7] == b"n+2" else nibabel.Nifti1Header
    if len(head) < kind.sizeof_hdr:
        raise Unreadable("truncated NIfTI: ends inside the header")
    try:
        return kind(head[: kind.sizeof_hdr])
    except (HeaderDataError, WrapStructError) as error:
        raise Unreadable("damaged NIfTI: unreadable header") from error


def _shape(header: Any, volumes: VolumeOptions) -> Shape:  # noqa: ANN401
    """Voxels along the three axes, as stored."""
    stored = [int(side) for side in header.get_data_shape()]
    if not stored or min(stored) < 1 or max(stored) > _LONGEST_SIDE:
        raise Unreadable("damaged NIfTI: impossible dimensions")
    *space, repeats = (stored + [1] * 4)[:4]
    if any(side > 1 for side in stored[4:]):
        raise Unreadable("NIfTI with more than four dimensions is not readable here")
    if not 0 <= volumes.volume < repeats:
        raise Unreadable(f"volume {volumes.volume} is out of range: the file has {repeats}")
    return space[0], space[1], space[2]


def _orientation(header: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401
    """Which anatomical axis each stored one runs along, and which way: (3, 2) as of nibabel."""
    affine = header.get_best_affine()
    if np.isfinite(affine).all():
        found: npt.NDArray[np.float64] = nibabel.io_orientation(affine)
        if np.isfinite(found).all():
            return found
    raise Unreadable("damaged NIfTI: its affine gives no orientation")


def _check_size(shape: Shape, limits: DecodeLimits) -> None:
    longest, middle, _ = sorted(shape, reverse=True)
    limits.check_pixels(longest, middle)
    if math.prod(shape) > _VOLUME_FRAMES * limits.max_pixels:
        raise Unreadable(
            f"{' x '.join(map(str, shape))} voxels is over the limit of "
            f"{_VOLUME_FRAMES * limits.max_pixels}"
        )


def _mode(header: Any) -> str:  # noqa: ANN401
    kind = header.get_data_dtype()
    if kind.kind not in "iuf":
        raise Unreadable("NIfTI with color or complex voxels is not readable here")
    return str(kind.newbyteorder("="))


def _load(data: bytes, shape: Shape, volumes: VolumeOptions) -> tuple[npt.NDArray[Any], Range]:
    """The slices (n, H, W) as they are looked at, and the range of the whole volume."""
    image = _image(data)
    stored = image.dataobj  # a proxy: only the wanted volume of a 4-D file is read
    rest = (volumes.volume, *(0,) * (stored.ndim - 4))[: max(stored.ndim - 3, 0)]
    try:
        voxels = np.asarray(stored[(..., *rest)]).reshape(shape)
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable("truncated or damaged NIfTI: the voxels cannot be read") from error
    eight_bit = voxels.dtype == np.uint8
    between = Range(0.0, 255.0) if eight_bit else robust_range(voxels)
    upright = nibabel.orientations.apply_orientation(voxels, _orientation(image.header))
    return upright.transpose(_SLICED[volumes.plane])[:, ::-1, ::-1], between


def _image(data: bytes) -> Any:  # noqa: ANN401 - nibabel is not typed
    stream: Any = io.BytesIO(data)
    if data.startswith(_GZIP):
        stream = gzip.GzipFile(fileobj=stream)
    kind = nibabel.Nifti2Image if _head(data)[4:7] == b"n+2" else nibabel.Nifti1Image
    try:
        return kind.from_file_map(kind.make_file_map({"image": stream}))
    except (OSError, EOFError, zlib.error, HeaderDataError, WrapStructError) as error:
        raise Unreadable("truncated or damaged NIfTI: it ends before its voxels") from error


@lru_cache(maxsize=1)
def _quiet_nibabel() -> None:
    """Its log lines on odd headers are not the operator's."""
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
