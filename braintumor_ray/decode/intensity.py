"""From intensities without a unit to 0..255: one range for all that must look alike."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from braintumor_ray.decode.types import Gray, Unreadable

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue; ITU-R BT.601
PERCENTILES = (0.5, 99.5)
_MOST_VALUES = 4_000_000  # percentiles of more are no surer, only slower
_VISIBLE = 4  # gray levels: noise and rounding stay below
_BLANK_SHARE = 0.001
# A scan in 4 bits (16 levels) still shows a head; masks, label maps and files that were scaled to
# [0, 1] and then stored as bytes have fewer. Real scans at hand have over 40.
_HANDFUL = 8
_ROWS = 8  # in which almost every scan shows enough
_DARK = 24  # gray levels of what most scans have around the head


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


def why_blank(gray: Gray) -> str | None:
    """Why a decoded picture shows nothing that could be scored, or None.

    Either under 0.1% of its pixels stand out from the rest, or it has a handful of gray levels
    only: a mask, a label map, or intensities that were scaled to [0, 1] before they were stored.

    Args:
        gray: uint8 (H, W).
    """
    if _shows_enough(gray):
        return None
    counts = np.bincount(gray.ravel(), minlength=256)
    if 1 < np.count_nonzero(counts) <= _HANDFUL:
        return "blank slice: only a handful of gray levels"
    return "blank slice" if _is_blank(counts) else None


def _is_blank(counts: npt.NDArray[np.int64]) -> bool:
    """Whether under 0.1% of the pixels stand out from the median, by how many each level has."""
    below, total = np.cumsum(counts), int(counts.sum())
    middle = np.searchsorted(below, [(total - 1) // 2, total // 2], side="right").mean()
    alike = np.abs(np.arange(256) - middle) <= _VISIBLE
    return bool(counts[~alike].sum() / total < _BLANK_SHARE)


def _shows_enough(gray: Gray) -> bool:
    """Whether some rows alone prove that a picture is not blank: whole counts would cost a tenth.

    Wherever the median of the whole may be, what counts as alike to it misses either the dark or
    the bright pixels of these rows, and each of them are enough for the whole.
    """
    height = gray.shape[0]
    if len(set(gray[height // 2].tobytes()[::4])) <= _HANDFUL:
        return False
    rows = gray[height // (2 * _ROWS) :: max(1, height // _ROWS)]
    enough = math.ceil(_BLANK_SHARE * gray.size)
    bright = np.count_nonzero(rows > _DARK + 2 * _VISIBLE)
    if bright >= enough and np.count_nonzero(rows <= _DARK) >= enough:
        return True
    return _has_two_sides(rows, enough)


def _has_two_sides(rows: Gray, enough: int) -> bool:
    """The same proof where the air is brighter: the darkest and the brightest pixels are apart."""
    levels = np.sort(rows, axis=None)
    if levels.size < enough:
        return False
    return int(levels[-enough]) - int(levels[enough - 1]) > 2 * _VISIBLE
