"""Tumor outlines as polygons, and their masks at any size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from braintumor_ray.errors import BrainTumorError
from braintumor_ray.types import Mask

Points = NDArray[np.float64]

_ELLIPSE_POINTS = 128  # a polygon of so many corners has 99.96% of the ellipse's area
_SUBPIXEL_BITS = 4
_FINE_UP_TO = 512  # pixels; above, a pixel is small enough without
_FINENESS = 4


class TruthError(BrainTumorError):
    """Tumor masks, boxes or outlines that cannot be read, or that fit no scan or several."""


@dataclass(frozen=True)
class Outlines:
    """Where the tumor of one scan is; no polygons: it was looked at and there is none.

    Attributes:
        polygons: each (n, 2), x and y, x to the right, y down, from the picture's top left corner.
        in_pixels: coordinates are pixels of the scan at full size; else fractions of its width
            and height.
    """

    polygons: tuple[Points, ...]
    in_pixels: bool

    def mask(self, shape: tuple[int, int], scan_shape: tuple[int, int] | None) -> Mask:
        """The union of the polygons at a wanted size.

        A pixel belongs to the mask where the polygons cover half of it or more.

        Args:
            shape: wanted (height, width).
            scan_shape: (height, width) of the scan at full size; needed for pixel coordinates.

        Returns:
            bool of the wanted shape.

        Raises:
            TruthError: coordinates are pixels and `scan_shape` is None.
        """
        if self.in_pixels and scan_shape is None:
            raise TruthError(
                "an outline in pixels needs the scan's full size; pass scan_shape=(height, width) "
                "from the catalog"
            )
        height, width = scan_shape if self.in_pixels and scan_shape else (1, 1)
        fine = _FINENESS if max(shape) <= _FINE_UP_TO else 1
        scale = np.array([shape[1] * fine / width, shape[0] * fine / height])
        canvas = np.zeros((shape[0] * fine, shape[1] * fine), np.uint8)
        for polygon in self.polygons:
            # OpenCV counts from the middle of the first pixel, outlines from its corner. One at
            # a time: together, overlapping polygons would cut holes into each other.
            corners = (polygon * scale - 0.5) * 2**_SUBPIXEL_BITS
            cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], 255, shift=_SUBPIXEL_BITS)
        if fine == 1:
            return canvas > 0
        cover = cv2.resize(canvas, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
        # fillPoly also sets pixels that the border only touches: half a fine pixel too much.
        return np.asarray(cover >= int(255 * (0.5 + 0.5 / fine)))


def resized_mask(mask: Mask, shape: tuple[int, int]) -> Mask:
    """Resample a bool mask (H, W): a pixel is set where half of it or more was."""
    if mask.shape == shape:
        return mask
    shrinks = shape[0] <= mask.shape[0] and shape[1] <= mask.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    cover = cv2.resize(mask.astype(np.uint8) * 255, (shape[1], shape[0]), interpolation=method)
    return np.asarray(cover >= 128)


def rectangle(x_min: float, y_min: float, x_max: float, y_max: float) -> Points:
    """The four corners of a box, (4, 2)."""
    return np.array([(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)], np.float64)


def ellipse(cx: float, cy: float, rx: float, ry: float, theta: float = 0.0) -> Points:
    """An ellipse as a polygon, (128, 2).

    Args:
        cx: center, to the right.
        cy: center, down.
        rx: half axis along x before turning.
        ry: half axis along y before turning.
        theta: radians, clockwise as seen (y points down), as in VIA 2 and the HTML canvas.
    """
    turn = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    x, y = rx * np.cos(turn), ry * np.sin(turn)
    cos, sin = math.cos(theta), math.sin(theta)
    return np.stack([cx + x * cos - y * sin, cy + x * sin + y * cos], axis=1)


def checked_polygon(points: Sequence[Any] | Points, where: str) -> Points:
    """Corners as float64 (n, 2).

    Raises:
        TruthError: fewer than three corners, or one that is not a finite number.
    """
    try:
        polygon = np.asarray(points, np.float64)
    except (TypeError, ValueError) as error:
        raise TruthError(f"{where} has a corner that is not a number: {error}") from error
    if polygon.ndim != 2 or len(polygon) < 3 or not np.isfinite(polygon).all():
        raise TruthError(f"{where} is not an outline of three or more corners; draw it again")
    return polygon
