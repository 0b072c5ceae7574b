"""Tumour outlines as polygons, and their masks at any size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from braintumor_ray.errors import BrainTumorError

Points = NDArray[np.float64]
Mask = NDArray[np.bool_]

_ELLIPSE_POINTS = 128  # a polygon of so many corners has 99.96% of the ellipse's area
_SUBPIXEL_BITS = 4
_FINE_UP_TO = 512  # pixels; above, a pixel is small enough as it is
_FINENESS = 4


class TruthError(BrainTumorError):
    """Tumour masks, boxes or outlines that cannot be read, or that fit no scan or several."""


@dataclass(frozen=True)
class Outlines:
    """Where the tumour of one scan is; no polygons: it was looked at and there is none.

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
        cx: centre, to the right.
        cy: centre, down.
        rx: half axis along x before turning.
        ry: half axis along y before turning.
        theta: radians, clockwise as seen (y points down), as in VIA 2 and the HTML canvas.
    """
    turn = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    x, y = rx * np.cos(turn), ry * np.sin(turn)
    cos, sin = math.cos(theta), math.sin(theta)
    return np.stack([cx + x * cos - y * sin, cy + x * sin + y * cos], axis=1)


def via_outlines(raw: Any, location: str) -> dict[str, Outlines]:  # noqa: ANN401 - parsed JSON
    """Outlines per file name from VGG Image Annotator's JSON (VIA 1 and 2).

    Both a whole project (`_via_img_metadata`) and exported annotations are read. Every region
    counts as tumour, whatever its attributes say.

    Args:
        raw: the parsed JSON.
        location: where it is from, for messages.

    Raises:
        TruthError: it is not VIA's, a region has no area (point, polyline), lacks a coordinate,
            or a file is listed twice.
    """
    entries = raw.get("_via_img_metadata", raw) if isinstance(raw, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise TruthError(f"'{location}' holds no VIA annotations; export them as JSON from VIA")
    found: dict[str, Outlines] = {}
    for key, entry in entries.items():
        if not isinstance(entry, dict) or not {"filename", "regions"} <= entry.keys():
            raise TruthError(
                f"entry '{key}' of '{location}' has no filename and regions; export the "
                "annotations as JSON from VIA (not COCO)"
            )
        name = str(entry["filename"])
        if name in found:
            raise TruthError(f"'{location}' lists '{name}' twice; keep one entry for each file")
        regions = entry["regions"]
        shapes = list(regions.values() if isinstance(regions, dict) else regions)
        polygons = tuple(
            _via_polygon(shape, f"region {number} of '{name}' in '{location}'")
            for number, shape in enumerate(shapes, start=1)
        )
        found[name] = Outlines(polygons, in_pixels=True)
    return found


def _via_polygon(region: Any, where: str) -> Points:  # noqa: ANN401 - parsed JSON
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict) or "name" not in shape:
        raise TruthError(f"{where} has no shape_attributes with a name; draw it again in VIA")
    name = shape["name"]
    if name not in _VIA_SHAPES:
        raise TruthError(f"{where} is a '{name}', which has no area; use {', '.join(_VIA_SHAPES)}")
    try:
        polygon = _VIA_SHAPES[name](shape)
    except KeyError as error:
        raise TruthError(f"{where} lacks {error}; draw it again in VIA") from error
    except (TypeError, ValueError) as error:
        raise TruthError(f"{where} cannot be meant: {error}; draw it again in VIA") from error
    return checked_polygon(polygon, where)


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


def _via_rect(shape: Mapping[str, Any]) -> Points:
    x, y = float(shape["x"]), float(shape["y"])
    return rectangle(x, y, x + float(shape["width"]), y + float(shape["height"]))


def _via_circle(shape: Mapping[str, Any]) -> Points:
    radius = float(shape["r"])
    return ellipse(float(shape["cx"]), float(shape["cy"]), radius, radius)


def _via_ellipse(shape: Mapping[str, Any]) -> Points:
    cx, cy, rx, ry = (float(shape[name]) for name in ("cx", "cy", "rx", "ry"))
    return ellipse(cx, cy, rx, ry, float(shape.get("theta", 0.0)))


def _via_points(shape: Mapping[str, Any]) -> Points:
    xs, ys = shape["all_points_x"], shape["all_points_y"]
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} x for {len(ys)} y")
    return np.array([xs, ys], np.float64).T


_VIA_SHAPES = {
    "polygon": _via_points,
    "ellipse": _via_ellipse,
    "circle": _via_circle,
    "rect": _via_rect,
}
