"""Drawn, transplanted and healed lesions: the same heads with and without a tumor.

In public sets scans with and without a tumor often come from different sources, sequences and
scanners, and a network learns the source. Here scans without a tumor get one (drawn by chance, or
taken from another scan), and scans with one lose it, so that what differs between the classes is
the tumor. Drawn lesions are rough sketches: they teach where something is, not what it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from braintumor_ray.decode.head import head_mask
from braintumor_ray.recipes.schema import LesionSection
from braintumor_ray.types import GrayImage

SOME_TUMOR = -1
"""Label of a scan with a drawn lesion: a tumor of no known class."""
BANK_SIZE = 96  # scans whose tumors are transplanted
Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Donor:
    """A scan with a known tumor.

    Attributes:
        image: uint8 (S, S).
        mask: uint8 (S, S), 0 or 255.
        label: its class index.
    """

    image: GrayImage
    mask: GrayImage
    label: int


@dataclass(frozen=True)
class LesionMaker:
    """Changes which scans have a tumor, as a recipe's [lesions] table says.

    Attributes:
        settings: the table.
        negative: index of the class without a tumor.
        donors: whose tumors may be transplanted.
    """

    settings: LesionSection
    negative: int
    donors: Sequence[Donor] = field(default_factory=tuple, repr=False)

    def __call__(
        self, random: np.random.Generator, image: GrayImage, mask: GrayImage | None, label: int
    ) -> tuple[GrayImage, GrayImage | None, int]:
        """A scan, its mask and its label, perhaps changed; the label may be `SOME_TUMOR`."""
        if label != self.negative:
            if mask is not None and random.random() < self.settings.heal:
                healed = heal(image, mask)
                if healed is not None:
                    return healed, None, self.negative
            return image, mask, label
        if random.random() < self.settings.draw:
            drawn = draw_lesion(random, image)
            return (image, mask, label) if drawn is None else (*drawn, SOME_TUMOR)
        if self.donors and random.random() < self.settings.transplant:
            donor = self.donors[int(random.integers(len(self.donors)))]
            return transplant(random, image, donor), donor.mask, donor.label
        return image, mask, label


def heal(image: GrayImage, mask: GrayImage) -> GrayImage | None:
    """Cover a tumor by the mirrored other half of the head; None where it crosses the middle."""
    size = image.shape[1]
    left, top, width, height = cv2.boundingRect(mask)
    center = (left + width / 2, top + height / 2)
    if abs(center[0] / size - 0.5) <= 0.75 * width / size:
        return None
    reach = (width / 2 * 1.35 + 0.01 * size, height / 2 * 1.35 + 0.01 * size)
    x, y = _grid(size)
    distance = np.maximum(np.abs(x - center[0]) / reach[0], np.abs(y - center[1]) / reach[1])
    share = ((1.25 - distance) / 0.25).clip(0, 1)
    return _mixed(image, image[:, ::-1].astype(np.float32), share)


def transplant(random: np.random.Generator, image: GrayImage, donor: Donor) -> GrayImage:
    """Lay another scan's tumor over a scan, feathered, at its own place and at about its tone."""
    left, top, width, height = cv2.boundingRect(donor.mask)
    x, y = _grid(image.shape[0])
    across = (x - left - width / 2) / max(width / 2, 1)
    down = (y - top - height / 2) / max(height / 2, 1)
    distance = np.hypot(across, down)
    ring = (distance > 1.0) & (distance < 1.6)
    gain = 1.0
    if ring.any():  # what surrounds the tumor there and here, compared
        gain = float(((image[ring].mean() + 8) / (donor.image[ring].mean() + 8)).clip(0.5, 2))
    gain *= float(np.exp(random.uniform(-0.3, 0.5)))
    share = ((1.35 - distance) / 0.4).clip(0, 1)
    return _mixed(image, donor.image.astype(np.float32) * np.float32(gain), share)


def draw_lesion(
    random: np.random.Generator, image: GrayImage
) -> tuple[GrayImage, GrayImage] | None:
    """Draw a lesion into a head: a textured blob, bright or dark, perhaps with core, rim and edema.

    Returns:
        The picture and the mask, uint8 (S, S) of 0 and 255; None where no place was found.
    """
    depth = _depth_in_head(image)
    if depth is None:
        return None
    size, deepest = image.shape[0], float(depth.max())
    at_the_edge = random.random() < 0.35  # as meningiomas, smoother and rounder
    radius = float(random.uniform(0.05, 0.11 if at_the_edge else 0.16)) * size
    if at_the_edge:
        places = (depth > 0.22 * deepest) & (depth < 0.22 * deepest + radius)
    else:
        places = depth > max(0.3 * deepest, 0.5 * radius)
    rows, columns = np.nonzero(places)
    if not len(rows):
        return None
    place = int(random.integers(len(rows)))
    distance = _blob_distance(random, size, (columns[place], rows[place]), radius, at_the_edge)
    inner = ((depth - 0.14 * deepest) / (size / 80)).clip(0, 1)
    share = ((1 - distance) / random.uniform(0.04, 0.15) + 0.5).clip(0, 1) * inner
    mask = np.where(share > 0.5, 255, 0).astype(np.uint8)
    if cv2.countNonZero(mask) < 60 * (size / 320) ** 2:
        return None
    span = float(np.percentile(image[depth > 0], 99.5))
    bright = random.random() < 0.75
    picture = _with_edema(random, image.astype(np.float32), distance, inner, span, bright)
    texture = _texture(random, distance, span, bright, at_the_edge)
    share *= np.float32(random.uniform(0.7, 1.0))
    return (picture * (1 - share) + texture * share).clip(0, 255).astype(np.uint8), mask


def _depth_in_head(image: GrayImage) -> Floats32 | None:
    """Distance to the head's border, pixels; None where there is no head of some size."""
    head = head_mask(image)
    if head is None:
        return None
    padded = cv2.copyMakeBorder(head, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    return np.asarray(depth, np.float32) if depth.max() >= image.shape[0] / 8 else None


def _blob_distance(
    random: np.random.Generator,
    size: int,
    center: tuple[int, int],
    radius: float,
    smooth: bool,
) -> Floats32:
    """Distance to a center in radii of an irregular, stretched blob: below 1 inside."""
    turn = random.uniform(0, np.pi)
    stretch = np.exp(random.uniform(0, 0.2 if smooth else 0.5))
    x, y = _grid(size)
    x, y = x - center[0], y - center[1]
    along = (x * np.cos(turn) + y * np.sin(turn)) / stretch
    across = (-x * np.sin(turn) + y * np.cos(turn)) * stretch
    waves = _noise(random, size, 10 if smooth else 14)
    roughness = 0.07 if smooth else 0.22
    return np.asarray(np.hypot(along, across) / radius * np.exp(roughness * waves), np.float32)


def _texture(
    random: np.random.Generator, distance: Floats32, span: float, bright: bool, smooth: bool
) -> Floats32:
    size = distance.shape[0]
    tone = span * (random.uniform(0.6, 1.05) if bright else random.uniform(0.05, 0.35))
    grain = random.uniform(0.02, 0.08) if smooth else random.uniform(0.04, 0.16)
    waves = _noise(random, size, 20) + 0.6 * _noise(random, size, 48)
    values = tone + span * grain * waves
    if not smooth and random.random() < 0.4:
        core = ((random.uniform(0.4, 0.7) - distance) / 0.15 + 0.5).clip(0, 1)
        values = values * (1 - core) + span * random.uniform(0, 1) * core
    if random.random() < 0.3:
        rim = np.exp(-(((distance - 0.9) / 0.1) ** 2))
        values = values * (1 - rim) + span * random.uniform(0.7, 1.1) * rim
    return np.asarray(values, np.float32)


def _with_edema(
    random: np.random.Generator,
    picture: Floats32,
    distance: Floats32,
    inner: Floats32,
    span: float,
    bright: bool,
) -> Floats32:
    """Swelling around the lesion, in half of them."""
    if random.random() >= 0.5:
        return picture
    waves = np.exp(0.25 * _noise(random, picture.shape[0], 9))
    share = ((random.uniform(1.3, 2.2) - distance * waves) / 0.3).clip(0, 1)
    share = share * inner * random.uniform(0.3, 0.8)
    tone = span * (random.uniform(0.5, 0.85) if bright else random.uniform(0.1, 0.35))
    return np.asarray(picture * (1 - share) + tone * share, np.float32)


def _noise(random: np.random.Generator, size: int, cells: int) -> Floats32:
    """Smooth noise of unit variance with about `cells` waves across, float32 (S, S)."""
    coarse = random.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)


def _grid(size: int) -> tuple[Floats32, Floats32]:
    """Columns (1, S) and rows (S, 1) of the pixels."""
    line = np.arange(size, dtype=np.float32)
    return line[None, :], line[:, None]


def _mixed(image: GrayImage, other: Floats32, share: npt.NDArray[np.floating]) -> GrayImage:
    mixed = image * (1 - share) + other * share
    return np.asarray(mixed.clip(0, 255), np.uint8)
