"""What phantom slices are drawn with: head coordinates, soft shapes, smooth noise, contrasts.

Head coordinates: u runs from left to right, v from the forehead (-1) to the back of the head (+1),
z from the skull base (0, suprasellar cistern) to the vertex (1); the brain's widest slice is about
1.6 wide and 2 long, so that 1 is about 80 mm.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Field: TypeAlias = npt.NDArray[np.float32]

_NOISE_REACH = 1.4  # noise grids cover [-1.4, 1.4] in u and v
Z_KNOTS = 6


class Contrast(NamedTuple):
    """Brightness (0 to about 1) of each tissue under one MR weighting."""

    bone: float
    marrow: float
    scalp: float
    muscle: float
    csf: float
    gray: float
    white: float
    dura: float
    vessel: float
    necrosis: float
    rim: float
    oedema: float
    meningioma: float
    adenoma: float


CONTRASTS = {
    "t1": Contrast(
        *(0.06, 0.42, 0.85, 0.30, 0.12, 0.40, 0.54, 0.25, 0.16),
        *(0.22, 0.46, 0.36, 0.56, 0.60),
    ),
    "t1_enhanced": Contrast(
        *(0.05, 0.40, 0.80, 0.30, 0.11, 0.37, 0.48, 0.50, 0.85),
        *(0.18, 0.80, 0.33, 0.78, 0.76),
    ),
    "t2": Contrast(
        *(0.05, 0.30, 0.50, 0.16, 0.86, 0.50, 0.36, 0.14, 0.08),
        *(0.78, 0.54, 0.68, 0.60, 0.56),
    ),
    "flair": Contrast(
        *(0.05, 0.28, 0.55, 0.22, 0.10, 0.54, 0.43, 0.20, 0.12),
        *(0.40, 0.74, 0.80, 0.66, 0.62),
    ),
}


@dataclass(frozen=True)
class Plane:
    """One slice's pixels in head coordinates; arrays are float32 (H, W)."""

    u: Field
    v: Field
    z: float
    pixel: float  # width of one pixel in head units, for soft edges


def soft(distance: Field, edge: float) -> Field:
    """Weight 0..1 of a shape from its signed distance (positive inside), `edge` wide."""
    return np.clip(distance * np.float32(1.0 / edge) + np.float32(0.5), 0.0, 1.0)


def paint(canvas: Field, weight: Field, value: float | Field) -> None:
    """Blend `value` over `canvas` in place, by `weight` (0..1)."""
    canvas += weight * (value - canvas)


def noise_at(volume: Field, plane: Plane) -> Field:
    """Sample a (z, n, n) noise volume smoothly at a plane's pixels; about unit variance."""
    height = plane.z * (Z_KNOTS - 1)
    low = min(int(height), Z_KNOTS - 2)
    part = np.float32(height - low)
    layer = (1 - part) * volume[low] + part * volume[low + 1]
    scale = np.float32((layer.shape[0] - 1) / (2 * _NOISE_REACH))
    reach = np.float32(_NOISE_REACH)
    return cv2.remap(
        layer,
        (plane.u + reach) * scale,
        (plane.v + reach) * scale,
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    )


def ellipse(plane: Plane, center: tuple[float, float], radii: tuple[float, float]) -> Field:
    """Signed distance (approximate, positive inside) of an ellipse."""
    x = (plane.u - np.float32(center[0])) / np.float32(radii[0])
    y = (plane.v - np.float32(center[1])) / np.float32(radii[1])
    return (1 - np.sqrt(x * x + y * y)) * np.float32(min(radii))


def segment(plane: Plane, start: tuple[float, float], end: tuple[float, float]) -> Field:
    """Distance from each pixel to a line segment given for the right side, mirrored to the left."""
    x = np.abs(plane.u) - np.float32(start[0])
    y = plane.v - np.float32(start[1])
    dx, dy = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    x -= along * dx
    y -= along * dy
    return np.sqrt(x * x + y * y)


def window(z: float, low: float, high: float, edge: float = 0.08) -> float:
    """1 for low <= z <= high, falling smoothly to 0 within `edge` outside."""
    outside = max(low - z, z - high, 0.0) / edge
    return float(max(0.0, 1.0 - outside) ** 0.5)
