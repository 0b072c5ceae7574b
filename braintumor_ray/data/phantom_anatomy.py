"""The healthy head of a phantom patient: skull, cortex, ventricles, skull base.

Everything is drawn in head coordinates: u runs from left to right, v from the forehead (-1) to
the back of the head (+1), z from the skull base (0, suprasellar cistern) to the vertex (1); the
brain's widest slice is about 1.6 wide and 2 long. A patient's folding is a smooth function of
(u, v, z), so that neighbouring slices resemble each other.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Field: TypeAlias = npt.NDArray[np.float32]

_NOISE_REACH = 1.4  # noise grids cover [-1.4, 1.4] in u and v
_Z_KNOTS = 6


class Contrast(NamedTuple):
    """Brightness (0 to about 1) of each tissue under one MR weighting."""

    bone: float
    marrow: float
    scalp: float
    muscle: float
    csf: float
    grey: float
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
class Head:
    """What a patient's slices share. Lengths are in head units (1 is about 80 mm)."""

    width: float  # factor on the brain's half width
    taper: float  # how much narrower the forehead is than the back
    gap: float  # CSF between brain and skull; grows with atrophy, as sulci do
    bone: float
    scalp: float
    sulci: int  # folds around one hemisphere
    sulcus_width: float
    ventricle: float  # factor on the ventricles' radii
    asymmetry: float
    coarse: Field  # (kind, z, 8, 8) smooth noise
    fine: Field  # (kind, z, 24, 24)


@dataclass(frozen=True)
class Plane:
    """One slice's pixels in head coordinates; arrays are float32 (H, W)."""

    u: Field
    v: Field
    z: float
    pixel: float  # width of one pixel in head units, for soft edges


def sample_head(rng: np.random.Generator) -> Head:
    """Draw the anatomy that all slices of one patient share."""
    atrophy = rng.uniform(0.0, 1.0)
    return Head(
        width=rng.uniform(0.92, 1.06),
        taper=rng.uniform(0.06, 0.16),
        gap=0.02 + 0.025 * atrophy,
        bone=rng.uniform(0.06, 0.09),
        scalp=rng.uniform(0.06, 0.10),
        sulci=int(rng.integers(22, 30)),
        sulcus_width=0.004 + 0.011 * atrophy,
        ventricle=rng.uniform(0.75, 1.1) + 0.4 * atrophy,
        asymmetry=rng.uniform(-0.02, 0.02),
        coarse=rng.standard_normal((2, _Z_KNOTS, 8, 8), dtype=np.float32),
        fine=rng.standard_normal((2, _Z_KNOTS, 24, 24), dtype=np.float32),
    )


def soft(distance: Field, edge: float) -> Field:
    """Weight 0..1 of a shape from its signed distance (positive inside), `edge` wide."""
    return np.clip(distance * np.float32(1.0 / edge) + np.float32(0.5), 0.0, 1.0)


def paint(canvas: Field, weight: Field, value: float | Field) -> None:
    """Blend `value` over `canvas` in place, by `weight` (0..1)."""
    canvas += weight * (value - canvas)


def noise_at(volume: Field, plane: Plane) -> Field:
    """Sample a (z, n, n) noise volume smoothly at a plane's pixels; about unit variance."""
    height = plane.z * (_Z_KNOTS - 1)
    low = min(int(height), _Z_KNOTS - 2)
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


def ellipse(plane: Plane, centre: tuple[float, float], radii: tuple[float, float]) -> Field:
    """Signed distance (approximate, positive inside) of an ellipse."""
    x = (plane.u - np.float32(centre[0])) / np.float32(radii[0])
    y = (plane.v - np.float32(centre[1])) / np.float32(radii[1])
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


def brain_depth(head: Head, u: Field, v: Field, z: float) -> Field:
    """Distance inward from the brain's outline (negative outside), along the radius."""
    half_width = head.width * np.interp(z, (0, 0.4, 0.7, 0.9, 1), (0.74, 0.80, 0.76, 0.64, 0.52))
    half_length = np.interp(z, (0, 0.4, 0.7, 0.9, 1), (0.90, 1.00, 0.95, 0.82, 0.68))
    y = v / np.float32(half_length)
    x = u / (np.float32(half_width) * (1 + np.float32(head.taper) * np.clip(y, -1.2, 0.6)))
    squared = x * x + y * y
    rho = np.sqrt(np.maximum(squared - np.float32(0.12) * np.minimum(x * y, 2) ** 2, 1e-4))
    radius = np.sqrt(u * u + v * v)
    return radius / rho - radius


def brain_radius(head: Head, angle: float, z: float) -> float:
    """Distance from the head's centre to the brain's outline in one direction (radians)."""
    radius = 0.8
    for _ in range(4):
        u = np.array([radius * np.cos(angle)], np.float32)
        v = np.array([radius * np.sin(angle)], np.float32)
        radius += float(brain_depth(head, u, v, z)[0])
    return radius


def paint_skull(canvas: Field, plane: Plane, head: Head, depth: Field, c: Contrast) -> Field:
    """Draw scalp, muscle, bone and the CSF below it; return the scalp's outer distance.

    The result is a signed distance, positive inside the head.
    """
    low = window(plane.z, 0.0, 0.15, 0.3)
    lateral = np.exp(-(((plane.v + 0.3) / 0.35) ** 2)) * soft(np.abs(plane.u) - 0.55, 0.3)
    flesh = np.float32(0.09 * low) * lateral  # temporalis muscle
    bone = np.float32(head.gap + head.bone)
    scalp = np.float32(head.scalp) + np.float32(0.012) * noise_at(head.coarse[0], plane)
    head_edge = depth + bone + scalp + flesh
    edge = plane.pixel * 1.5
    paint(canvas, soft(head_edge, edge), c.scalp)
    paint(canvas, soft(depth + bone + flesh, edge) * soft(flesh - 0.01, 0.02), c.muscle)
    paint(canvas, soft(depth + bone, edge), c.bone)
    diploe = np.float32(0.22 * head.bone) - np.abs(depth + np.float32(head.gap + 0.5 * head.bone))
    paint(canvas, soft(diploe, edge) * np.float32(0.8), c.marrow)
    paint(canvas, soft(depth + np.float32(head.gap), edge), c.csf)
    return head_edge


def paint_brain(
    canvas: Field, plane: Plane, head: Head, depth: Field, c: Contrast, outer: Field | None
) -> Field:
    """Draw everything inside the brain's outline; return the white matter's weight (0..1).

    Args:
        canvas: Picture to draw on, in place.
        plane: Pixels in head coordinates, already pushed aside by a lesion.
        head: The patient.
        depth: Distance inward from the brain's outline at the same coordinates.
        c: Brightness of the tissues.
        outer: Distance from an extra-axial lesion that the cortex folds around, if there is one.
    """
    inside = soft(depth, plane.pixel * 1.5)
    noises = (noise_at(head.fine[0], plane), noise_at(head.fine[1], plane))
    plane = _organic(plane, noises)
    pial = _pial_distance(plane, head, depth, noises)
    if outer is not None:
        pial = np.minimum(pial, outer)
    edge = max(0.018, plane.pixel * 1.5)
    ribbon = np.float32(0.042) + np.float32(0.005) * noises[1]
    white = inside * soft(pial - ribbon, edge)
    paint(canvas, inside * soft(pial - np.float32(head.sulcus_width), edge), c.grey)
    paint(canvas, white, c.white)
    _paint_deep_grey(canvas, plane, c)
    _paint_ventricles(canvas, plane, head, c)
    _paint_base(canvas, plane, inside, c)
    _paint_falx(canvas, plane, head, depth, c)
    return white


def _organic(plane: Plane, noises: tuple[Field, Field]) -> Plane:
    """Bend the coordinates a little, so that no structure is an exact ellipse or line."""
    bend = np.float32(0.014)
    return Plane(plane.u + bend * noises[0], plane.v + bend * noises[1], plane.z, plane.pixel)


def _pial_distance(
    plane: Plane, head: Head, depth: Field, noises: tuple[Field, Field]
) -> Field:
    """Distance from the nearest CSF-covered surface: outline, fissures, sulci, cistern."""
    z = plane.z
    hemisphere = np.minimum(depth, _fissure_distance(plane, head))
    sulcus_depth = np.float32(np.interp(z, (0, 0.5, 1), (0.12, 0.15, 0.20)))
    bottom = sulcus_depth * (1 + np.float32(0.8) * noises[1])
    phase = _around_hemisphere(plane, head.sulci) + np.float32(1.7) * noises[0]
    sulci = np.float32(1.55 / head.sulci) * np.abs(np.sin(phase * np.float32(0.5)))
    sulci += np.float32(1.5) * np.maximum(hemisphere - bottom, 0)
    pial = np.minimum(hemisphere, sulci)
    sylvian = window(z, 0.0, 0.42, 0.12)
    if sylvian > 0:
        base = window(z, 0, 0.1, 0.2)
        inner = (0.44 - 0.22 * base, -0.02 - 0.2 * base)
        pial = np.minimum(pial, segment(plane, (0.85, -0.22), inner) + (1 - sylvian) * 0.1)
        insula = segment(plane, inner, (0.45, 0.16))
        pial = np.minimum(pial, insula + 0.1 - 0.1 * window(z, 0.28, 0.42))
    return pial


def _around_hemisphere(plane: Plane, folds: int) -> Field:
    """Phase that turns `folds` times along a hemisphere's rim and is constant across it.

    The rim is a stadium around the segment u = 0.36, |v| < 0.45; the phase is its arc length.
    """
    bend, half_width = np.float32(0.45), np.float32(0.5)
    x = np.abs(plane.u) - np.float32(0.36)
    straight = np.clip(plane.v, -bend, bend)
    turned = half_width * np.arctan2(plane.v - straight, x)
    lateral = straight + turned
    medial = 2 * bend + half_width * np.float32(np.pi) - plane.v
    arc = np.where((x < 0) & (np.abs(plane.v) < bend), medial, lateral)
    perimeter = 4 * bend + 2 * np.float32(np.pi) * half_width
    return arc * np.float32(2 * np.pi * folds / perimeter)


def _fissure_distance(plane: Plane, head: Head) -> Field:
    """Distance from the interhemispheric fissure, open in front and behind, and all along above."""
    front = np.float32(np.interp(plane.z, (0, 0.4, 0.62, 0.78), (-0.34, -0.50, -0.46, 0.02)))
    back = np.float32(np.interp(plane.z, (0, 0.4, 0.62, 0.78), (0.8, 0.42, 0.40, 0.0)))
    closed = np.maximum(np.minimum(plane.v - front, back - plane.v), 0)
    return np.abs(plane.u - np.float32(head.asymmetry) * plane.v) + np.float32(2) * closed


def _paint_deep_grey(canvas: Field, plane: Plane, c: Contrast) -> None:
    shown = window(plane.z, 0.30, 0.55)
    if shown <= 0:
        return
    half = Plane(np.abs(plane.u), plane.v, plane.z, plane.pixel)
    nuclei = (((0.20, -0.29), (0.05, 0.10)), ((0.33, -0.06), (0.07, 0.15)))
    thalamus = ((0.13, 0.10), (0.10, 0.15))
    value = 0.75 * c.grey + 0.25 * c.white
    for centre, (rx, ry) in (*nuclei, thalamus):
        weight = soft(ellipse(half, centre, (rx * shown, ry * shown)), 0.03)
        paint(canvas, weight, value)


def _paint_ventricles(canvas: Field, plane: Plane, head: Head, c: Contrast) -> None:
    z, size = plane.z, head.ventricle
    parts = (  # start, end, radius, levels at which it is seen
        ((0.05, -0.16), (0.15, -0.40), 0.045, (0.36, 0.60)),  # frontal horn
        ((0.24, 0.22), (0.29, 0.46), 0.050, (0.36, 0.58)),  # atrium and occipital horn
        ((0.09, -0.34), (0.10, 0.05), 0.048, (0.60, 0.70)),  # body
        ((0.10, 0.05), (0.22, 0.34), 0.050, (0.58, 0.68)),
        ((0.0, -0.10), (0.0, 0.14), 0.020, (0.24, 0.44)),  # third ventricle
        ((0.38, -0.02), (0.42, 0.14), 0.016, (0.04, 0.20)),  # temporal horn
    )
    edge = max(0.02, plane.pixel * 1.5)
    for start, end, radius, (low, high) in parts:
        shown = window(z, low, high, 0.07)
        if shown > 0:
            width = np.float32(radius * size * shown)
            paint(canvas, soft(width - segment(plane, start, end), edge), c.csf)
    choroid = window(z, 0.38, 0.54, 0.05)
    if choroid > 0:
        spot = np.float32(0.022 * choroid) - segment(plane, (0.25, 0.26), (0.27, 0.33))
        paint(canvas, soft(spot, edge), 0.5 * (c.grey + c.vessel))


def _paint_base(canvas: Field, plane: Plane, inside: Field, c: Contrast) -> None:
    """Suprasellar cistern, brain stem with its cisterns, cerebellum with folia."""
    shown = window(plane.z, 0.0, 0.14, 0.16)
    if shown <= 0:
        return
    edge = max(0.02, plane.pixel * 1.5)
    half = Plane(np.abs(plane.u), plane.v, plane.z, plane.pixel)
    cerebellum = ellipse(half, (0.22 * shown**3, 0.56), (0.38 * shown, 0.33 * shown))
    lobe = inside * soft(cerebellum, edge)
    paint(canvas, lobe, c.csf)
    folia = np.float32(0.5) + np.float32(0.5) * np.cos((cerebellum + plane.v) * np.float32(140))
    core = soft(cerebellum - np.float32(0.16), 0.06)
    leaf = c.grey + (c.csf - c.grey) * np.float32(0.3) * folia * (1 - core)
    inner = inside * soft(cerebellum - np.float32(0.02), edge)
    paint(canvas, inner, leaf + (0.5 * (c.white + c.grey) - leaf) * core)
    paint(canvas, soft(ellipse(plane, (0.0, 0.36), (0.07 * shown, 0.05 * shown)), edge), c.csf)
    stem = ellipse(half, (0.05, 0.10), (0.15 * shown, 0.16 * shown))
    paint(canvas, soft(stem + np.float32(0.03), edge), c.csf)
    paint(canvas, soft(_star(plane, shown), edge), c.csf)
    paint(canvas, soft(stem, edge), 0.7 * c.white + 0.3 * c.grey)
    paint(canvas, soft(ellipse(plane, (0.0, 0.19), (0.025, 0.025)), edge), c.csf)  # aqueduct
    carotids = np.float32(0.022) - segment(plane, (0.10, -0.23), (0.105, -0.225))
    paint(canvas, soft(carotids, edge) * np.float32(shown), c.vessel)
    stalk = ellipse(plane, (0.0, -0.2), (0.022, 0.022))
    paint(canvas, soft(stalk, edge) * np.float32(shown), 0.5 * (c.grey + c.adenoma))


def _star(plane: Plane, shown: float) -> Field:
    """Signed distance of the five-pointed suprasellar cistern, a point towards the forehead."""
    y = plane.v + np.float32(0.17)
    radius = np.sqrt(plane.u * plane.u + y * y)
    points = np.cos(np.float32(5) * np.arctan2(plane.u, -y))
    return np.float32(0.17 * shown) * (1 + np.float32(0.3) * points) - radius


def _paint_falx(canvas: Field, plane: Plane, head: Head, depth: Field, c: Contrast) -> None:
    """Dura between the hemispheres and the sagittal sinus at its ends."""
    line = np.float32(0.008) - _fissure_distance(plane, head)
    above_tentorium = window(plane.z, 0.22, 1.0, 0.1)
    behind = np.where(plane.v > 0, np.float32(above_tentorium), np.float32(1))
    within = soft(depth + np.float32(head.gap), 0.02)
    paint(canvas, soft(line, plane.pixel * 1.5) * behind * within, c.dura)
    back = brain_radius(head, np.pi / 2, plane.z)
    sinus = ellipse(plane, (head.asymmetry * back, back + 0.2 * head.gap), (0.035, 0.045))
    paint(canvas, soft(sinus, 0.02), c.vessel)
