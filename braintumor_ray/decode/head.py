"""Where the head is in a picture: its outline, a square around it, and its range of intensities.

Frames, margins, burned-in borders and the scanner's gain differ between hospitals and say nothing
about a tumor; a network that sees the head alone, at one size and in one range, cannot use them.
"""

from typing import NamedTuple

import cv2
import numpy as np

from braintumor_ray.decode.types import Gray

PLAUSIBLE_AREA = (0.05, 0.95)
CROP_MARGIN = 0.04  # of the head's longer side, on each side
_CLOSING_KERNEL = (9, 9)
_SEARCH_SIDE = 320  # pixels; the outline is looked for at this size
_PERCENTILES = (1.0, 99.5)
_BRIGHTEST = 235  # leaves room above for what is brighter than nearly all of the head
_LEAST_RANGE = 16.0


class Box(NamedTuple):
    """A part of a picture, in fractions of its width and height; may reach beyond its edges."""

    left: float
    top: float
    right: float
    bottom: float


WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def head_mask(gray: Gray) -> Gray | None:
    """The filled outline of the head, uint8 (H, W) of 0 and 1; None without a plausible one.

    The largest filled outline after a light blur and a threshold, of 5% to 95% of the picture. It
    follows the scalp, not the brain.
    """
    blurred = cv2.GaussianBlur(gray, (5, 5), 0)
    otsu, bright = cv2.threshold(blurred, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    # In T2 and contrast-enhanced scans Otsu parts bright tissue from the brain; half of it
    # parts the head from air. A gray background or a drawn frame defeats the half: Otsu then.
    above_air = cv2.threshold(blurred, otsu / 2, 1, cv2.THRESH_BINARY)[1]
    for candidate in (above_air, bright):
        head = _largest_filled(np.asarray(candidate, np.uint8))
        if head is not None and _plausible(head):
            return head
    return None


def head_view(gray: Gray, size: int, *, crop: bool, stretch: bool) -> tuple[Gray, Box]:
    """A picture as a square around the head, in the head's own range.

    Args:
        gray: uint8 (H, W).
        size: side S of the result.
        crop: to a square around the head, aspect kept, black beyond the picture; else all of the
            picture, squashed.
        stretch: the head's 1st percentile becomes 0 and its 99.5th 235.

    Returns:
        uint8 (S, S), and the part of the picture that it shows. Where no head is found all of the
        picture counts as one.
    """
    small = _at_search_size(gray)
    mask = head_mask(small)
    box = _square_around(mask, gray.shape) if crop else WHOLE
    square = cut(gray, box, size)
    if stretch:
        square = np.asarray(cv2.LUT(square, _stretching(small, mask)), np.uint8)
    return square, box


def _at_search_size(gray: Gray) -> Gray:
    height, width = gray.shape
    scale = _SEARCH_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(gray, size, interpolation=method), np.uint8)


def _square_around(mask: Gray | None, shape: tuple[int, ...]) -> Box:
    """A square around the head, or around the whole picture, in fractions of the picture."""
    height, width = shape[:2]
    if mask is None:
        side = float(max(height, width))
        center = (width / 2, height / 2)
    else:
        scale = max(height, width) / max(mask.shape)
        x, y, w, h = cv2.boundingRect(mask)
        side = max(w, h) * (1 + 2 * CROP_MARGIN) * scale
        center = ((x + w / 2) * scale, (y + h / 2) * scale)
    left, top = center[0] - side / 2, center[1] - side / 2
    return Box(left / width, top / height, (left + side) / width, (top + side) / height)


def cut(gray: Gray, box: Box, size: int) -> Gray:
    """The part of a picture in a box, as uint8 (S, S); black beyond the picture."""
    height, width = gray.shape
    across, down = (box.right - box.left) * width, (box.bottom - box.top) * height
    # Shrunk by averaging first: a warp alone would skip pixels.
    shrink = (min(1.0, size / across), min(1.0, size / down))
    source = gray
    if min(shrink) < 1:
        shrunk = (max(1, round(width * shrink[0])), max(1, round(height * shrink[1])))
        source = np.asarray(cv2.resize(gray, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    scale_x, scale_y = (
        size / ((box.right - box.left) * source.shape[1]),
        size / ((box.bottom - box.top) * source.shape[0]),
    )
    shift_x = 0.5 * scale_x - 0.5 - box.left * source.shape[1] * scale_x
    shift_y = 0.5 * scale_y - 0.5 - box.top * source.shape[0] * scale_y
    matrix = np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y]])
    return np.asarray(
        cv2.warpAffine(source, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8
    )


def _stretching(small: Gray, mask: Gray | None) -> Gray:
    """Lookup table uint8 (256,) from the head's range to 0..235."""
    inside = small[mask > 0] if mask is not None else small.ravel()
    low, high = np.percentile(inside, _PERCENTILES)
    if mask is not None:
        low = min(low, np.percentile(small, 10))  # air stays black
    levels = (np.arange(256) - low) / max(high - low, _LEAST_RANGE) * _BRIGHTEST
    return levels.clip(0, 255).astype(np.uint8)


def _largest_filled(mask: Gray) -> Gray | None:
    # By enclosed area, not by pixel count: a thin scalp ring encloses the brain.
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones(_CLOSING_KERNEL, np.uint8))
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return None
    largest = max(outlines, key=cv2.contourArea)
    filled = cv2.drawContours(np.zeros_like(mask), [largest], -1, 1, cv2.FILLED)
    return np.asarray(filled, np.uint8)


def _plausible(head: Gray) -> bool:
    smallest, largest = PLAUSIBLE_AREA
    return smallest <= cv2.countNonZero(head) / head.size <= largest
