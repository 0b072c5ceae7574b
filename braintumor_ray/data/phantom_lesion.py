"""Lesions of the phantom patients: glioma, meningioma, pituitary adenoma."""

from dataclasses import dataclass

import numpy as np

from braintumor_ray.data.phantom_anatomy import (
    Contrast,
    Field,
    Head,
    Plane,
    brain_radius,
    noise_at,
    paint,
    soft,
)

CLASS_NAMES = ("glioma_tumor", "meningioma_tumor", "pituitary_tumor", "no_tumor")
SELLA = (0.0, -0.19)  # on the midline, before the brain stem


@dataclass(frozen=True)
class Lesion:
    """A patient's lesion, or, for `no_tumor`, only the levels that were imaged."""

    class_name: str
    z: float  # level of the middle slice
    half_extent: float  # the patient's slices lie within z +- half_extent
    angle: float  # direction from the head's centre, radians, pi/2 is the back of the head
    reach: float  # distance from the centre as a share of the brain's radius there
    radius: float  # at the middle slice, head units
    squash: float  # length of one axis over the other
    strength: float  # 0..1: how far the lesion differs from grey matter
    irregularity: float
    oedema: float  # width of the oedema over the radius


@dataclass(frozen=True)
class LesionCut:
    """A lesion in one slice: its centre, signed distance (positive inside) and radius."""

    centre: tuple[float, float]
    distance: Field
    radius: float


def sample_lesion(rng: np.random.Generator, class_name: str) -> Lesion:
    """Draw a patient's lesion: place, size and looks typical of its class."""
    base = rng.uniform() < _BASE_SHARE[class_name]
    z = rng.uniform(0.05, 0.13) if base else rng.uniform(0.22, 0.92)
    angle, reach = _place(rng, class_name, base)
    low, high = _RADII[class_name]
    return Lesion(
        class_name=class_name,
        z=z,
        half_extent=min(rng.uniform(0.03, 0.08), z),
        angle=angle,
        reach=reach,
        radius=rng.uniform(low, high),
        squash=rng.uniform(0.8, 1.25),
        strength=rng.uniform(0.75, 1.0),
        irregularity=rng.uniform(0.10, 0.22) if class_name == "glioma_tumor" else 0.03,
        oedema=rng.uniform(0.2, 0.9),
    )


_RADII = {
    "glioma_tumor": (0.19, 0.32),
    "meningioma_tumor": (0.18, 0.32),
    "pituitary_tumor": (0.10, 0.17),
    "no_tumor": (0.1, 0.1),
}
_BASE_SHARE = {
    "glioma_tumor": 0.12,
    "meningioma_tumor": 0.15,
    "pituitary_tumor": 1.0,
    "no_tumor": 0.25,
}


def _place(rng: np.random.Generator, class_name: str, base: bool) -> tuple[float, float]:
    """Direction and relative distance of a lesion from the head's centre."""
    side = rng.choice((-1.0, 1.0))
    if class_name == "pituitary_tumor":
        return -np.pi / 2 + rng.normal(0, 0.05), 0.0
    if class_name == "meningioma_tumor":
        parasagittal = rng.uniform() < 0.35
        spread = 0.18 if parasagittal else rng.uniform(0.3, np.pi - 0.3)
        pole = 1.0 if rng.uniform() < 0.5 else -1.0
        return side * spread + pole * np.pi / 2, 1.0
    spread = rng.uniform(0.5, 1.5) if base else rng.uniform(0.5, np.pi - 0.5)
    return -np.pi / 2 + side * spread, rng.uniform(0.42, 0.66)


def cut(lesion: Lesion, head: Head, plane: Plane) -> LesionCut | None:
    """Intersect a lesion with a slice; `None` for a patient without one.

    A meningioma follows the brain's outline from level to level, sunk by part of its radius, so
    that it keeps its broad base on the dura.
    """
    if lesion.class_name == "no_tumor":
        return None
    offset = 0.8 * (plane.z - lesion.z) / max(lesion.half_extent, 1e-6)
    radius = lesion.radius * float(np.sqrt(max(1 - offset * offset, 0.2)))
    centre = _centre(lesion, head, plane.z, radius)
    x = plane.u - np.float32(centre[0])
    y = plane.v - np.float32(centre[1])
    stretched = np.sqrt(x * x * np.float32(lesion.squash) + y * y / np.float32(lesion.squash))
    rough = noise_at(head.fine[1], plane) + noise_at(head.coarse[1], plane)
    distance = np.float32(radius) * (1 + np.float32(lesion.irregularity) * rough) - stretched
    return LesionCut(centre, distance, radius)


def _centre(lesion: Lesion, head: Head, z: float, radius: float) -> tuple[float, float]:
    if lesion.class_name == "pituitary_tumor":
        return SELLA[0] + 0.3 * float(np.cos(lesion.angle)), SELLA[1]
    distance = lesion.reach * brain_radius(head, lesion.angle, z)
    if lesion.class_name == "meningioma_tumor":
        distance += head.gap - 0.65 * radius
    return distance * float(np.cos(lesion.angle)), distance * float(np.sin(lesion.angle))


def push_aside(plane: Plane, found: LesionCut, share: float) -> Plane:
    """Mass effect: coordinates of the anatomy that a lesion has displaced to each pixel."""
    x = plane.u - np.float32(found.centre[0])
    y = plane.v - np.float32(found.centre[1])
    reach = np.float32(1 / (2 * (1.3 * found.radius) ** 2))
    pull = np.float32(share) * np.exp(-(x * x + y * y) * reach)
    return Plane(plane.u - pull * x, plane.v - pull * y, plane.z, plane.pixel)


def paint_lesion(
    canvas: Field, plane: Plane, head: Head, lesion: Lesion, found: LesionCut, white: Field,
    depth: Field, c: Contrast,
) -> None:
    """Draw a lesion and its oedema over the brain, in place.

    Args:
        canvas: Picture to draw on.
        plane: Pixels in head coordinates.
        head: The patient.
        lesion: The patient's lesion.
        found: The lesion in this slice.
        white: Weight of white matter (0..1): oedema spreads along it.
        depth: Distance inward from the brain's outline.
        c: Brightness of the tissues.
    """
    texture = noise_at(head.fine[0], plane)
    inside = soft(depth + np.float32(head.gap), plane.pixel * 1.5)
    if lesion.class_name == "glioma_tumor":
        _paint_glioma(canvas, plane, lesion, found, white, texture, inside, c)
        return
    value = c.meningioma if lesion.class_name == "meningioma_tumor" else c.adenoma
    if lesion.class_name == "meningioma_tumor":
        _paint_oedema(canvas, found, 0.4 * lesion.oedema, white, texture, c)
        tail = soft(found.distance + np.float32(0.35 * found.radius), 0.2 * found.radius)
        paint(canvas, tail * inside * soft(-depth, 0.01), c.dura)
    value = c.grey + lesion.strength * (value - c.grey)
    weight = inside * soft(found.distance, plane.pixel * 1.5)
    paint(canvas, weight, value * (1 + np.float32(0.03) * texture))


def _paint_oedema(
    canvas: Field, found: LesionCut, width: float, white: Field, texture: Field, c: Contrast
) -> None:
    reach = np.float32(found.radius) * np.float32(width) * (1 + np.float32(0.4) * texture)
    paint(canvas, white * soft(found.distance + reach, 0.6 * found.radius), c.oedema)


def _paint_glioma(
    canvas: Field, plane: Plane, lesion: Lesion, found: LesionCut, white: Field, texture: Field,
    inside: Field, c: Contrast,
) -> None:
    """Oedema, an infiltrating edge, an uneven enhancing rim and a necrotic core."""
    _paint_oedema(canvas, found, lesion.oedema, white, texture, c)
    rim = c.grey + lesion.strength * (c.rim - c.grey)
    edge = soft(found.distance, max(0.05, plane.pixel * 2))
    paint(canvas, inside * edge, rim * (1 + np.float32(0.12) * texture))
    thickness = np.float32(found.radius) * (np.float32(0.35) + np.float32(0.12) * texture)
    core = soft(found.distance - thickness, max(0.03, plane.pixel * 2))
    paint(canvas, inside * core, c.necrosis + np.float32(0.03) * texture)
