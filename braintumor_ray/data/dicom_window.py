"""The VOI transformation: the tagged window, or lookup table, as uint8 (PS3.3, C.11.2)."""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_voi, apply_windowing

from braintumor_ray.data.decode import Gray


def tagged_window(values: npt.NDArray[Any], item: Dataset) -> Gray | None:
    """Apply the first tagged window, else the first VOI lookup table.

    Args:
        values: (H, W), after the modality LUT.
        item: the dataset, or the frame's VOI functional group.

    Returns:
        uint8 (H, W); None where nothing usable is tagged, or where it would show nothing at all.
    """
    gray = _windowed(values, item)
    if gray is None:
        gray = _looked_up(values, item)
    if gray is None or (gray.min() == gray.max() and values.min() != values.max()):
        return None
    return gray


def _windowed(values: npt.NDArray[Any], item: Dataset) -> Gray | None:
    center, width = (_first_number(item.get(key)) for key in ("WindowCenter", "WindowWidth"))
    function = str(item.get("VOILUTFunction") or "LINEAR").upper()
    least = 1 if function == "LINEAR" else np.finfo(float).tiny
    if center is None or width is None or width < least:
        return None
    # pydicom spreads a window over the range of the dataset's samples: here 0..255.
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.BitsStored, window.PixelRepresentation = 8, 0
    window.WindowCenter, window.WindowWidth = center, width
    known = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
    window.VOILUTFunction = function if function in known else "LINEAR"
    shown = apply_windowing(values.astype(np.float64), window)
    return np.rint(shown.clip(0, 255)).astype(np.uint8)


def _looked_up(values: npt.NDArray[Any], item: Dataset) -> Gray | None:
    if not item.get("VOILUTSequence") or values.dtype.kind not in "iuf":
        return None
    bits = int(item.VOILUTSequence[0].LUTDescriptor[2])
    shown = apply_voi(np.rint(values).astype(np.int64), item)
    return np.rint(shown * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)


def _first_number(value: Any) -> float | None:  # noqa: ANN401 - whatever a tag holds
    if value is None or isinstance(value, str):
        return None
    try:
        first = next(iter(value)) if hasattr(value, "__iter__") else value
        number = float(first)
    except (TypeError, ValueError, StopIteration):
        return None  # an empty or garbled window: as good as none
    return number if np.isfinite(number) else None
