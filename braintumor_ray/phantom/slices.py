"""One phantom slice: anatomy, lesion, contrast and the scanner's imperfections."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from braintumor_ray.errors import UsageError
from braintumor_ray.phantom.anatomy import (
    Head,
    Scene,
    brain_depth,
    paint_brain,
    paint_skull,
    sample_head,
)
from braintumor_ray.phantom.canvas import CONTRASTS, Contrast, Field, Plane
from braintumor_ray.phantom.lesion import (
    CLASS_NAMES,
    Lesion,
    cut,
    paint_lesion,
    push_aside,
    sample_lesion,
)

_HEAD_HALF = (1.03, 1.20)  # widest head in u and v, scalp included
_WEIGHTINGS = {"t1_enhanced": 0.76, "t1": 0.06, "t2": 0.10, "flair": 0.08}
_MASS_EFFECT = {"glioma_tumor": 0.3, "meningioma_tumor": 0.45, "pituitary_tumor": 0.15}


@dataclass(frozen=True)
class Slice:
    """One synthetic axial slice and what is exactly known about it.

    Attributes:
        image: uint8 (H, W), forehead up.
        tumor_mask: bool (H, W); a glioma's rim and core without its oedema; empty for `no_tumor`.
        skull_mask: bool (H, W), the ring of skull and scalp.
        brain_mask: bool (H, W), everything inside the brain's outline, ventricles included.
        class_name: One of `CLASS_NAMES`.
        patient: The patient's name.
        slice_index: Place among the patient's slices, lowest first.
    """

    image: npt.NDArray[np.uint8]
    tumor_mask: npt.NDArray[np.bool_]
    skull_mask: npt.NDArray[np.bool_]
    brain_mask: npt.NDArray[np.bool_]
    class_name: str
    patient: str
    slice_index: int


@dataclass(frozen=True)
class Patient:
    """What all slices of a phantom patient share."""

    head: Head
    lesion: Lesion
    contrast: Contrast
    shape: tuple[int, int]  # height, width in pixels
    pixel: float  # head units per pixel
    rotation: float  # radians
    shift: tuple[float, float]  # u, v of the picture's center
    bias: Field  # (4, 4)
    noise: float  # standard deviation, 1 is full brightness
    gain: float
    entropy: tuple[int, ...]


def sample_patient(patient_seed: int | Sequence[int], class_name: str) -> Patient:
    """Draw a patient: the same for the same seed and class, whatever else is drawn.

    Args:
        patient_seed: Non-negative number, or several such as (data set's seed, patient's number).
        class_name: One of `CLASS_NAMES`.

    Raises:
        UsageError: If the class is not one of `CLASS_NAMES`.
    """
    if class_name not in CLASS_NAMES:
        raise UsageError(f"no phantom class {class_name!r}: choose from {', '.join(CLASS_NAMES)}")
    entropy = (patient_seed,) if isinstance(patient_seed, int) else tuple(patient_seed)
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    # The order of the draws is part of the data set: the same seed gives the same bytes.
    return Patient(
        **_sample_geometry(rng),
        head=sample_head(rng),
        contrast=_sample_contrast(rng),
        bias=rng.normal(0, 0.06, (4, 4)).astype(np.float32),
        noise=rng.uniform(0.012, 0.04),
        gain=rng.uniform(0.88, 1.04),
        entropy=entropy,
        lesion=sample_lesion(rng, class_name),
    )


def _sample_geometry(rng: np.random.Generator) -> dict[str, Any]:
    """Image size, pixel size, rotation and position; the head always fits in the picture."""
    height = int(rng.integers(180, 321))
    width = height if rng.uniform() < 0.7 else int(height * rng.uniform(0.88, 1.10))
    width = min(max(width, 180), 320)
    rotation = rng.uniform(-0.10, 0.10)
    cos, sin = np.cos(rotation), abs(np.sin(rotation))
    half_u = np.hypot(_HEAD_HALF[0] * cos, _HEAD_HALF[1] * sin)
    half_v = np.hypot(_HEAD_HALF[1] * cos, _HEAD_HALF[0] * sin)
    pixel = max(2 * half_u / width, 2 * half_v / height) / rng.uniform(0.92, 0.99)
    slack_u, slack_v = width * pixel / 2 - half_u, height * pixel / 2 - half_v
    shift = (rng.uniform(-0.6, 0.6) * slack_u, rng.uniform(-0.6, 0.6) * slack_v)
    return {"shape": (height, width), "pixel": pixel, "rotation": rotation, "shift": shift}


def _sample_contrast(rng: np.random.Generator) -> Contrast:
    chosen = CONTRASTS[str(rng.choice(list(_WEIGHTINGS), p=list(_WEIGHTINGS.values())))]
    factors = rng.normal(1.0, 0.05, len(chosen))
    return Contrast(*(float(value * factor) for value, factor in zip(chosen, factors, strict=True)))


def draw_slice(
    patient_seed: int | Sequence[int],
    class_name: str,
    level: float,
    *,
    patient: str = "p0000",
    slice_index: int = 0,
) -> Slice:
    """Draw one slice of one patient; the same arguments give the same bytes.

    Args:
        patient_seed: As in `sample_patient`.
        class_name: One of `CLASS_NAMES`.
        level: 0 (the patient's lowest slice) to 1 (the highest); a lesion is largest at 0.5.
        patient: Name kept in the result.
        slice_index: Number kept in the result.

    Raises:
        UsageError: If the class is unknown or the level is outside 0..1.
    """
    return draw_patient_slice(
        sample_patient(patient_seed, class_name), level, patient=patient, slice_index=slice_index
    )


def draw_patient_slice(
    drawn: Patient, level: float, *, patient: str = "p0000", slice_index: int = 0
) -> Slice:
    """As `draw_slice`, for a patient that is already drawn.

    Raises:
        UsageError: If the level is outside 0..1.
    """
    if not 0 <= level <= 1:
        raise UsageError(f"level {level} of a phantom slice: give 0 (lowest) to 1 (highest)")
    plane = _plane(drawn, level)
    scene, head_edge, tumor = _draw_tissues(drawn, plane)
    inside = scene.depth > -drawn.head.gap
    return Slice(
        image=_acquire(scene.canvas, drawn, level),
        tumor_mask=tumor & inside,
        skull_mask=(head_edge > 0) & ~inside,
        brain_mask=scene.depth > 0,
        class_name=drawn.lesion.class_name,
        patient=patient,
        slice_index=slice_index,
    )


def _plane(drawn: Patient, level: float) -> Plane:
    """Head coordinates of every pixel: scaled, shifted and turned."""
    height, width = drawn.shape
    x = (np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)) * drawn.pixel
    y = (np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2)) * drawn.pixel
    x, y = (x - drawn.shift[0])[None, :], (y - drawn.shift[1])[:, None]
    cos, sin = np.float32(np.cos(drawn.rotation)), np.float32(np.sin(drawn.rotation))
    lesion = drawn.lesion
    z = float(np.clip(lesion.z + (2 * level - 1) * lesion.half_extent, 0, 1))
    u, v = cos * x + sin * y, cos * y - sin * x
    return Plane(u.astype(np.float32), v.astype(np.float32), z, drawn.pixel)


def _draw_tissues(drawn: Patient, plane: Plane) -> tuple[Scene, Field, npt.NDArray[np.bool_]]:
    """The drawn slice before the scanner, the scalp's outer distance, and the lesion."""
    canvas, tumor = np.zeros(drawn.shape, np.float32), np.zeros(drawn.shape, np.bool_)
    depth = brain_depth(drawn.head, plane.u, plane.v, plane.z)
    scene = Scene(canvas, plane, depth, drawn.head, drawn.contrast)
    head_edge = paint_skull(scene)
    box = _bounding_box(depth > -drawn.head.gap - 0.05)
    cropped = Plane(plane.u[box], plane.v[box], plane.z, plane.pixel)
    inner = replace(scene, canvas=canvas[box], plane=cropped, depth=depth[box])
    _draw_inside(inner, drawn.lesion, tumor[box])
    return scene, head_edge, tumor


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _draw_inside(scene: Scene, lesion: Lesion, tumor: npt.NDArray[np.bool_]) -> None:
    """Draw brain and lesion, and mark the lesion in `tumor`, in place."""
    found = cut(lesion, scene.head, scene.plane)
    if found is None:
        paint_brain(scene, None)
        return
    moved = push_aside(scene.plane, found, _MASS_EFFECT[lesion.class_name])
    moved_depth = brain_depth(scene.head, moved.u, moved.v, moved.z)
    pushed = replace(scene, plane=moved, depth=np.minimum(moved_depth, scene.depth))
    outer = -found.distance if lesion.class_name == "meningioma_tumor" else None
    white = paint_brain(pushed, outer)
    paint_lesion(scene, lesion, found, white)
    tumor |= found.distance > 0


def _acquire(canvas: Field, drawn: Patient, level: float) -> npt.NDArray[np.uint8]:
    """Blur, bias field, Rician noise (magnitude of a complex signal) and 8-bit scaling."""
    height, width = drawn.shape
    rng = np.random.default_rng(np.random.SeedSequence((*drawn.entropy, round(level * 1e6))))
    signal = cv2.GaussianBlur(canvas, (0, 0), 0.6)
    signal *= cv2.resize(np.exp(drawn.bias), (width, height), interpolation=cv2.INTER_CUBIC)
    real, imaginary = rng.standard_normal((2, height, width), dtype=np.float32)
    sigma = np.float32(drawn.noise)
    magnitude = np.sqrt((signal + sigma * real) ** 2 + (sigma * imaginary) ** 2)
    return np.clip(magnitude * np.float32(255 * drawn.gain), 0, 255).astype(np.uint8)
