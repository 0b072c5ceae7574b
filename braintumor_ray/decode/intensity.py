"""From intensities without a unit to 0..255: one range for all that must look alike."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from braintumor_ray.decode.types import Gray, Unreadable

PERCENTILES = (0.5, 99.5)
_MOST_VALUES = 4_000_000  # percentiles of more are no surer, only slower
_VISIBLE = 4  # gray levels: noise and rounding stay below
_BLANK_SHARE = 0.001


class Range(NamedTuple):
    """The intensities that become 0 and 255; equal where all values are alike."""

    low: float
    high: float


def robust_range(values: npt.NDArray[Any]) -> Range:
    """The 0.5th and 99.5th percentile: a few hot pixels must not darken the rest.

    Where almost all values are alike, the least and the greatest, so that the few are kept.

    Args:
        values: integers or floats of any shape and range; NaN and infinities do not count.

    Raises:
        Unreadable: if no value is finite.
    """
    flat = np.ravel(values, order="K")
    flat = flat[:: max(1, flat.size // _MOST_VALUES)].astype(np.float32)
    finite = flat[np.isfinite(flat)]
    if not finite.size:
        raise Unreadable("no finite pixel values")
    low, high = np.percentile(finite, PERCENTILES)
    if high <= low:
        low, high = finite.min(), finite.max()
    return Range(float(low), float(high))


def to_gray(values: npt.NDArray[Any], between: Range) -> Gray:
    """Map linearly to 0..255 and clip; all 0 where the range is empty, NaN as the lowest."""
    low, high = between
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    numbers = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    scaled: npt.NDArray[np.float32] = (numbers - np.float32(low)) * np.float32(255 / (high - low))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def is_blank(gray: Gray) -> bool:
    """Whether a slice shows nothing: under 0.1% of its pixels stand out from the rest."""
    level = np.median(gray)
    return bool((np.abs(gray - level) > _VISIBLE).mean() < _BLANK_SHARE)
