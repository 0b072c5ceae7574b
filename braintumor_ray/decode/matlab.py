"""Cheng's brain tumor set as it comes: MATLAB 7.3 files, which are HDF5, to uint8 gray by h5py.

Each file holds one struct `cjdata`: image (int16), label (1 meningioma, 2 glioma, 3 pituitary),
PID (the patient's id), tumorMask and tumorBorder. MATLAB stores columns first, so that arrays come
out transposed.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from braintumor_ray.decode.intensity import robust_range, to_gray, why_blank
from braintumor_ray.decode.types import (
    Decoded,
    DecodeLimits,
    FrameDecoder,
    Probe,
    Unreadable,
    VolumeOptions,
)

LABELS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
_NO_SCAN = "MAT-file without a scan (no cjdata/image)"
_MOST_LETTERS = 256


def open_matlab(
    data: bytes, name: str, limits: DecodeLimits, volumes: VolumeOptions
) -> FrameDecoder:
    """Read the scan of a file; what is returned gives it as frame 0.

    Args:
        data: the whole file.
        name: ``matlab``.
        limits: `max_pixels` is checked on the header, before pixels are allocated.
        volumes: not used.

    Raises:
        Unreadable: h5py is not installed, or the file is damaged or too large.
    """
    with _opened(data) as file:
        stored = _dataset(file, "image")
        if stored is None:
            return lambda frame: Decoded(None, _NO_SCAN, name, None, "skipped")
        _check_plane(stored)
        limits.check_pixels(*stored.shape)
        image, mode = np.asarray(stored[()]).T, str(stored.dtype)
    gray = np.ascontiguousarray(to_gray(image, robust_range(image)))
    blank = why_blank(gray)

    def decode_frame(frame: int) -> Decoded:
        if frame != 0:
            raise Unreadable(f"frame {frame} is out of range: the file has 1")
        if blank:
            return Decoded(None, blank, name, mode, "skipped")
        return Decoded(gray.copy(), format=name, mode=mode)

    return decode_frame


def probe_matlab(data: bytes, name: str, volumes: VolumeOptions) -> Probe:
    """Size, label and patient of a file, which must be whole: HDF5 has no header in front.

    Raises:
        Unreadable: as `open_matlab`.
    """
    with _opened(data) as file:
        stored = _dataset(file, "image")
        if stored is None:
            return Probe(name, frames=1)
        _check_plane(stored)
        width, height = stored.shape
        tags = {"modality": "MR", "label": _label(file), "patient": _text(file, "PID")}
        known = {key: value for key, value in tags.items() if value}
        return Probe(name, str(stored.dtype), width, height, frames=1, tags=known)


def tumor_mask(data: bytes) -> npt.NDArray[np.bool_]:
    """Where the tumor is, bool (H, W) as the scan is shown.

    Raises:
        Unreadable: h5py is not installed, the file is damaged or has no mask.
    """
    with _opened(data) as file:
        stored = _dataset(file, "tumorMask")
        if stored is None:
            raise Unreadable("MAT-file without a mask (no cjdata/tumorMask)")
        _check_plane(stored)
        return np.ascontiguousarray(np.asarray(stored[()]).T > 0)


@contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise Unreadable(
            "MAT-file (MATLAB 7.3): h5py is not installed; pip install 'braintumor-ray[matlab]'"
        ) from error
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises on damage
        raise Unreadable("truncated or damaged MAT-file: HDF5 cannot be read") from error


def _dataset(file: Any, field: str) -> Any:  # noqa: ANN401 - h5py is not typed
    """A field of cjdata with values, or None."""
    group = file.get("cjdata")
    found = group.get(field) if hasattr(group, "get") else None
    return found if getattr(found, "shape", None) else None


def _check_plane(stored: Any) -> None:  # noqa: ANN401
    if stored.ndim != 2 or stored.dtype.kind not in "iufb" or min(stored.shape) < 1:
        raise Unreadable("MAT-file whose cjdata holds no plane of numbers")


def _label(file: Any) -> str | None:  # noqa: ANN401
    stored = _dataset(file, "label")
    if stored is None or stored.size != 1 or stored.dtype.kind not in "iuf":
        return None
    return LABELS.get(float(np.asarray(stored[()]).ravel()[0]))  # type: ignore[call-overload]


def _text(file: Any, field: str) -> str:  # noqa: ANN401
    """A char array: one code per letter."""
    stored = _dataset(file, field)
    if stored is None or stored.dtype.kind not in "ui" or stored.size > _MOST_LETTERS:
        return ""
    codes = np.asarray(stored[()]).ravel()
    return "".join(chr(code) for code in codes if 0 < code < 2**16).strip()
