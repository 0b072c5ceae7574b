"""Lesions of the phantom patients: glioma, meningioma, pituitary adenoma."""

from dataclasses import dataclass

import numpy as np

from braintumor_ray.phantom.anatomy import Head, Scene, brain_radius
from braintumor_ray.phantom.canvas import Field, Plane, noise_at, paint, soft

CLASS_NAMES = ("glioma_tumor", "meningioma_tumor", "pituitary_tumor", "no_tumor")
SELLA = (0.0, -0.19)  # on the midline, before the brain stem


@dataclass(frozen=True)
class Lesion:
    """A patient's lesion, or, for `no_tumor`, only the levels that were imaged."""

    class_name: str
    z: float  # level of the middle slice
    half_extent: float  # the patient's slices are within z +- half_extent
    angle: float  # direction from the head's center, radians, pi/2 is the back of the head
    reach: float  # distance from the center as a share of the brain's radius there
    radius: float  # at the middle slice, head units
    squash: float  # length of one axis over the other
    strength: float  # 0..1: how far the lesion differs from gray matter
    irregularity: float
    oedema: float  # width of the oedema over the radius


@dataclass(frozen=True)
class LesionCut:
    """A lesion in one slice: its center, signed distance (positive inside) and radius."""

    center: tuple[float, float]
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
    "glioma_tumor": 0.1,
    "meningioma_tumor": 0.1,
    "pituitary_tumor": 1.0,
    "no_tumor": 0.2,
}


def _place(rng: np.random.Generator, class_name: str, base: bool) -> tuple[float, float]:
    """Direction and relative distance of a lesion from the head's center.

    Gliomas favor the frontal and temporal lobes; nearly half of the meningiomas are next to the
    falx, the others over the convexity.
    """
    side = rng.choice((-1.0, 1.0))
    front = -np.pi / 2
    if class_name == "pituitary_tumor":
        return front + rng.normal(0, 0.05), 0.0
    if class_name == "meningioma_tumor":
        along_falx = 0.2 if rng.uniform() < 0.7 else np.pi - 0.2
        convexity = rng.uniform(0.4, np.pi - 0.4)
        return front + side * (along_falx if rng.uniform() < 0.45 else convexity), 1.0
    lobe = float(np.clip(rng.normal(1.25, 0.4), 0.5, 1.5 if base else np.pi - 0.5))
    return front + side * lobe, rng.uniform(0.45, 0.62)


def cut(lesion: Lesion, head: Head, plane: Plane) -> LesionCut | None:
    """Intersect a lesion with a slice; `None` for a patient without one.

    A meningioma follows the brain's outline from level to level, sunk by part of its radius, so
    that it keeps its broad base on the dura.
    """
    if lesion.class_name == "no_tumor":
        return None
    offset = 0.8 * (plane.z - lesion.z) / max(lesion.half_extent, 1e-6)
    radius = lesion.radius * float(np.sqrt(max(1 - offset * offset, 0.2)))
    center = _center(lesion, head, plane.z, radius)
    x = plane.u - np.float32(center[0])
    y = plane.v - np.float32(center[1])
    stretched = np.sqrt(x * x * np.float32(lesion.squash) + y * y / np.float32(lesion.squash))
    rough = noise_at(head.fine[1], plane) + noise_at(head.coarse[1], plane)
    distance = np.float32(radius) * (1 + np.float32(lesion.irregularity) * rough) - stretched
    return LesionCut(center, distance, radius)


def _center(lesion: Lesion, head: Head, z: float, radius: float) -> tuple[float, float]:
    if lesion.class_name == "pituitary_tumor":
        return SELLA[0] + 0.3 * float(np.cos(lesion.angle)), SELLA[1]
    distance = lesion.reach * brain_radius(head, lesion.angle, z)
    if lesion.class_name == "meningioma_tumor":
        distance += head.gap - 0.65 * radius
    return distance * float(np.cos(lesion.angle)), distance * float(np.sin(lesion.angle))


def push_aside(plane: Plane, found: LesionCut, share: float) -> Plane:
    """Mass effect: coordinates of the anatomy that a lesion has displaced to each pixel."""
    x = plane.u - np.float32(found.center[0])
    y = plane.v - np.float32(found.center[1])
    reach = np.float32(1 / (2 * (1.3 * found.radius) ** 2))
    pull = np.float32(share) * np.exp(-(x * x + y * y) * reach)
    return Plane(plane.u - pull * x, plane.v - pull * y, plane.z, plane.pixel)


def paint_lesion(scene: Scene, lesion: Lesion, found: LesionCut, white: Field) -> None:
    """Draw a lesion and its oedema over the brain, in place.

    Args:
        scene: The slice, in coordinates that no lesion has displaced.
        lesion: The patient's lesion.
        found: The lesion in this slice.
        white: Weight of white matter (0..1): oedema spreads along it.
    """
    texture = noise_at(scene.head.fine[0], scene.plane)
    if lesion.class_name == "glioma_tumor":
        _paint_oedema(scene, found, lesion.oedema, white)
        _paint_glioma(scene, lesion, found, texture)
    elif lesion.class_name == "meningioma_tumor":
        _paint_oedema(scene, found, 0.4 * lesion.oedema, white)
        _paint_dural_tail(scene, found)
        _paint_solid(scene, lesion, found, scene.contrast.meningioma, texture)
    else:
        _paint_solid(scene, lesion, found, scene.contrast.adenoma, texture)


def _within_skull(scene: Scene) -> Field:
    return soft(scene.depth + np.float32(scene.head.gap), scene.plane.pixel * 1.5)


def _paint_solid(
    scene: Scene, lesion: Lesion, found: LesionCut, brightness: float, texture: Field
) -> None:
    """A well-defined, almost homogeneous lesion."""
    gray = scene.contrast.gray
    value = gray + lesion.strength * (brightness - gray)
    weight = _within_skull(scene) * soft(found.distance, scene.plane.pixel * 1.5)
    paint(scene.canvas, weight, value * (1 + np.float32(0.03) * texture))


def _paint_dural_tail(scene: Scene, found: LesionCut) -> None:
    """Thickened dura next to a meningioma's base, between brain and skull."""
    near = soft(found.distance + np.float32(0.35 * found.radius), 0.2 * found.radius)
    paint(scene.canvas, near * _within_skull(scene) * soft(-scene.depth, 0.01), scene.contrast.dura)


def _paint_oedema(scene: Scene, found: LesionCut, width: float, white: Field) -> None:
    """Swollen white matter around a lesion; `width` is in radii."""
    ragged = 1 + np.float32(0.4) * noise_at(scene.head.coarse[0], scene.plane)
    reach = np.float32(found.radius * width) * ragged
    weight = white * soft(found.distance + reach, 0.6 * found.radius)
    paint(scene.canvas, weight, scene.contrast.oedema)


def _paint_glioma(scene: Scene, lesion: Lesion, found: LesionCut, texture: Field) -> None:
    """An infiltrating edge, an uneven enhancing rim and a necrotic core."""
    canvas, c, pixel = scene.canvas, scene.contrast, scene.plane.pixel
    inside = _within_skull(scene)
    rim = c.gray + lesion.strength * (c.rim - c.gray)
    edge = soft(found.distance, max(0.05, pixel * 2))
    paint(canvas, inside * edge, rim * (1 + np.float32(0.12) * texture))
    thickness = np.float32(found.radius) * (np.float32(0.35) + np.float32(0.12) * texture)
    core = soft(found.distance - thickness, max(0.03, pixel * 2))
    paint(canvas, inside * core, c.necrosis + np.float32(0.03) * texture)
