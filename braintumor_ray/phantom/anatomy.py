"""The healthy head of a phantom patient: skull, cortex, ventricles, skull base.

A patient's folding is a smooth function of the head coordinates (u, v, z) of `phantom_canvas`, so
that neighboring slices resemble each other.
"""

from dataclasses import dataclass, replace

import numpy as np

from braintumor_ray.phantom.canvas import (
    Z_KNOTS,
    Contrast,
    Field,
    Plane,
    ellipse,
    noise_at,
    paint,
    segment,
    soft,
    window,
)


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
class Scene:
    """A slice in the making; all arrays have its height and width.

    Attributes:
        canvas: Brightness so far; the `paint_*` functions change it in place.
        plane: Head coordinates of the pixels.
        depth: Distance inward from the brain's outline at these coordinates.
        head: The patient's anatomy.
        contrast: Brightness of the tissues.
    """

    canvas: Field
    plane: Plane
    depth: Field
    head: Head
    contrast: Contrast


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
        coarse=rng.standard_normal((2, Z_KNOTS, 8, 8), dtype=np.float32),
        fine=rng.standard_normal((2, Z_KNOTS, 24, 24), dtype=np.float32),
    )


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
    """Distance from the head's center to the brain's outline in one direction (radians)."""
    radius = 0.8
    for _ in range(4):
        u = np.array([radius * np.cos(angle)], np.float32)
        v = np.array([radius * np.sin(angle)], np.float32)
        radius += float(brain_depth(head, u, v, z)[0])
    return radius


def paint_skull(scene: Scene) -> Field:
    """Draw scalp, muscle, bone and the CSF below it; return the scalp's outer distance.

    The result is a signed distance, positive inside the head.
    """
    canvas, plane, depth = scene.canvas, scene.plane, scene.depth
    head, c = scene.head, scene.contrast
    bone = np.float32(head.gap + head.bone)
    flesh = _temporalis(plane)
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


def _temporalis(plane: Plane) -> Field:
    """Thickness of the muscle between scalp and bone, at the temples of low slices."""
    low = np.float32(0.09 * window(plane.z, 0.0, 0.15, 0.3))
    ahead = (plane.v + np.float32(0.3)) / np.float32(0.35)
    return low * np.exp(-ahead * ahead) * soft(np.abs(plane.u) - np.float32(0.55), 0.3)


def paint_brain(scene: Scene, outer: Field | None) -> Field:
    """Draw everything inside the brain's outline; return the white matter's weight (0..1).

    Args:
        scene: The slice, its coordinates already pushed aside by a lesion.
        outer: Distance from an extra-axial lesion that the cortex folds around, if there is one.
    """
    head, edge = scene.head, max(0.018, scene.plane.pixel * 1.5)
    noises = (noise_at(head.fine[0], scene.plane), noise_at(head.fine[1], scene.plane))
    scene = replace(scene, plane=_organic(scene.plane, noises))
    pial = _pial_distance(scene, noises)
    if outer is not None:
        pial = np.minimum(pial, outer)
    inside = soft(scene.depth, scene.plane.pixel * 1.5)
    ribbon = np.float32(0.042) + np.float32(0.005) * noises[1]
    white = inside * soft(pial - ribbon, edge)
    gray = inside * soft(pial - np.float32(head.sulcus_width), edge)
    paint(scene.canvas, gray, scene.contrast.gray)
    paint(scene.canvas, white, scene.contrast.white)
    _paint_deep_gray(scene)
    _paint_ventricles(scene)
    _paint_base(scene, inside)
    _paint_falx(scene)
    return white


def _organic(plane: Plane, noises: tuple[Field, Field]) -> Plane:
    """Bend the coordinates a little, so that no structure is an exact ellipse or line."""
    bend = np.float32(0.014)
    return Plane(plane.u + bend * noises[0], plane.v + bend * noises[1], plane.z, plane.pixel)


def _pial_distance(scene: Scene, noises: tuple[Field, Field]) -> Field:
    """Distance from the nearest CSF-covered surface: outline, fissures, sulci, cistern."""
    plane, head, z = scene.plane, scene.head, scene.plane.z
    hemisphere = np.minimum(scene.depth, _fissure_distance(plane, head))
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


def _paint_deep_gray(scene: Scene) -> None:
    canvas, plane, c = scene.canvas, scene.plane, scene.contrast
    shown = window(plane.z, 0.30, 0.55)
    if shown <= 0:
        return
    half = Plane(np.abs(plane.u), plane.v, plane.z, plane.pixel)
    nuclei = (((0.20, -0.29), (0.05, 0.10)), ((0.33, -0.06), (0.07, 0.15)))
    thalamus = ((0.13, 0.10), (0.10, 0.15))
    value = 0.75 * c.gray + 0.25 * c.white
    for center, (rx, ry) in (*nuclei, thalamus):
        weight = soft(ellipse(half, center, (rx * shown, ry * shown)), 0.03)
        paint(canvas, weight, value)


def _paint_ventricles(scene: Scene) -> None:
    canvas, plane, c = scene.canvas, scene.plane, scene.contrast
    z, size = plane.z, scene.head.ventricle
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
        paint(canvas, soft(spot, edge), 0.5 * (c.gray + c.vessel))


def _paint_base(scene: Scene, inside: Field) -> None:
    """Skull base: cerebellum, brain stem, suprasellar cistern with what runs through it."""
    shown = window(scene.plane.z, 0.0, 0.14, 0.16)
    if shown <= 0:
        return
    canvas, plane, c = scene.canvas, scene.plane, scene.contrast
    edge = max(0.02, plane.pixel * 1.5)
    half = Plane(np.abs(plane.u), plane.v, plane.z, plane.pixel)
    _paint_cerebellum(scene, half, inside, shown)
    stem = ellipse(half, (0.05, 0.10), (0.15 * shown, 0.16 * shown))
    paint(canvas, soft(stem + np.float32(0.03), edge), c.csf)
    paint(canvas, soft(_star(plane, shown), edge), c.csf)
    paint(canvas, soft(stem, edge), 0.7 * c.white + 0.3 * c.gray)
    aqueduct = ellipse(plane, (0.0, 0.19), (0.025, 0.025))
    paint(canvas, soft(aqueduct, edge), c.csf)
    carotids = np.float32(0.022) - segment(plane, (0.10, -0.23), (0.105, -0.225))
    paint(canvas, soft(carotids, edge) * np.float32(shown), c.vessel)
    stalk = ellipse(plane, (0.0, -0.2), (0.022, 0.022))
    paint(canvas, soft(stalk, edge) * np.float32(shown), 0.5 * (c.gray + c.adenoma))


def _paint_cerebellum(scene: Scene, half: Plane, inside: Field, shown: float) -> None:
    """Two hemispheres with folia around a white core, and the fourth ventricle before them."""
    canvas, plane, c = scene.canvas, scene.plane, scene.contrast
    edge = max(0.02, plane.pixel * 1.5)
    distance = ellipse(half, (0.22 * shown**3, 0.56), (0.38 * shown, 0.33 * shown))
    paint(canvas, inside * soft(distance, edge), c.csf)
    core = soft(distance - np.float32(0.16), 0.06)
    folia = np.float32(0.5) + np.float32(0.5) * np.cos((distance + plane.v) * np.float32(140))
    leaf = c.gray + np.float32(0.3 * (c.csf - c.gray)) * folia * (1 - core)
    inner = inside * soft(distance - np.float32(0.02), edge)
    paint(canvas, inner, leaf + (0.5 * (c.white + c.gray) - leaf) * core)
    fourth_ventricle = ellipse(plane, (0.0, 0.36), (0.07 * shown, 0.05 * shown))
    paint(canvas, soft(fourth_ventricle, edge), c.csf)


def _star(plane: Plane, shown: float) -> Field:
    """Signed distance of the five-pointed suprasellar cistern, a point towards the forehead."""
    y = plane.v + np.float32(0.17)
    radius = np.sqrt(plane.u * plane.u + y * y)
    points = np.cos(np.float32(5) * np.arctan2(plane.u, -y))
    return np.float32(0.17 * shown) * (1 + np.float32(0.3) * points) - radius


def _paint_falx(scene: Scene) -> None:
    """Dura between the hemispheres and the sagittal sinus at the back."""
    plane, head, c = scene.plane, scene.head, scene.contrast
    line = soft(np.float32(0.008) - _fissure_distance(plane, head), plane.pixel * 1.5)
    above_tentorium = window(plane.z, 0.22, 1.0, 0.1)
    behind = np.where(plane.v > 0, np.float32(above_tentorium), np.float32(1))
    within = soft(scene.depth + np.float32(head.gap), 0.02)
    paint(scene.canvas, line * behind * within, c.dura)
    back = brain_radius(head, np.pi / 2, plane.z)
    sinus = ellipse(plane, (head.asymmetry * back, back + 0.2 * head.gap), (0.035, 0.045))
    paint(scene.canvas, soft(sinus, 0.02), c.vessel)
