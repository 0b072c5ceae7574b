"""Random changes of a scan, drawn from (seed, epoch, scan) alone."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.overlay import contact_sheet, write_png
from braintumor_ray.recipes.schema import AugmentSection, Recipe
from braintumor_ray.types import GrayImage

ERASED_AREA = (0.02, 0.15)
"""Share of the picture that an erased rectangle covers: small enough to leave most tumors."""
ERASED_ASPECT = (0.5, 2.0)
_BORDERS = {
    "nearest": cv2.BORDER_REPLICATE,
    "constant": cv2.BORDER_CONSTANT,
    "reflect": cv2.BORDER_REFLECT,
}


@dataclass(frozen=True)
class Augmenter:
    """Applies a recipe's augmentation; the same scan in the same epoch always changes alike.

    Attributes:
        settings: the recipe's [augment] table.
        seed: of the run.
        epoch: counted over all stages.
        size: side of the result, pixels; None: as it comes.
    """

    settings: AugmentSection
    seed: int
    epoch: int
    size: int | None = None

    def __call__(self, image: GrayImage, scan_id: int) -> GrayImage:
        """Change one uint8 (S, S) image; returns a new one, (size, size)."""
        entropy = [self.seed, self.epoch, scan_id & 0xFFFF_FFFF_FFFF_FFFF]
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        side = self.size or image.shape[0]
        warped = cv2.warpAffine(
            image,
            self._matrix(random, image.shape[0], side),
            (side, side),
            flags=cv2.INTER_LINEAR,
            borderMode=_BORDERS[self.settings.fill],
        )
        return self._erase(random, self._tone(random, np.asarray(warped, dtype=np.uint8)))

    def _matrix(self, random: np.random.Generator, size: int, side: int) -> npt.NDArray[np.float64]:
        """Affine map (2, 3) about the center: flip, zoom, shear, rotation, shift, then scale."""
        s = self.settings
        angle, shear = np.deg2rad(random.uniform([-s.rotation, -s.shear], [s.rotation, s.shear]))
        zoom = random.uniform(1 - s.zoom, 1 + s.zoom, 2)
        shift = random.uniform(-s.shift, s.shift, 2) * side
        flips = np.where(random.random(2) < 0.5, -1.0, 1.0)
        if not s.horizontal_flip:
            flips[0] = 1.0
        if not s.vertical_flip:
            flips[1] = 1.0
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shearing = np.array([[1.0, -np.sin(shear)], [0.0, np.cos(shear)]])
        linear = rotation @ shearing @ np.diag(zoom * flips) * (side / size)
        middle, center = np.full(2, (size - 1) / 2), np.full(2, (side - 1) / 2)
        return np.column_stack([linear, center - linear @ middle + shift])

    def _tone(self, random: np.random.Generator, image: GrayImage) -> GrayImage:
        s = self.settings
        if not s.contrast and not s.brightness:
            return image
        gain = random.uniform(1 - s.contrast, 1 + s.contrast)
        offset = random.uniform(-s.brightness, s.brightness) * 255
        table = np.clip(np.arange(256) * gain + offset, 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(image, table), dtype=np.uint8)

    def _erase(self, random: np.random.Generator, image: GrayImage) -> GrayImage:
        """Random erasing (Zhong et al. 2020), in one gray; `image` is ours to change."""
        if not self.settings.erase or random.random() >= self.settings.erase:
            return image
        side = image.shape[0]
        area = random.uniform(*ERASED_AREA) * side**2
        aspect = np.exp(random.uniform(*np.log(ERASED_ASPECT)))
        height, width = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        top, left = random.integers(0, side - height + 1), random.integers(0, side - width + 1)
        image[top : top + height, left : left + width] = random.integers(0, 256)
        return image


def augment_batch(
    images: GrayImage, scan_ids: npt.NDArray[np.int64], augmenter: Augmenter
) -> GrayImage:
    """Change each image of a batch (B, S, S) by its own draw; returns (B, size, size)."""
    if not len(images):
        return images
    pairs = zip(images, scan_ids.tolist(), strict=True)
    return np.stack([augmenter(image, scan_id) for image, scan_id in pairs])


SCANS, EPOCHS = 6, 7
_CANDIDATES = 4 * SCANS  # some may be unreadable


def preview_augmentation(catalog: pa.Table, recipe: Recipe, path: Path) -> None:
    """Write a sheet with a row per scan: as it is, then as in the first epochs.

    Raises:
        UsageError: none of the first scans can be read.
    """
    step = max(1, catalog.num_rows // _CANDIDATES)
    rows = catalog.take(pa.array(range(0, catalog.num_rows, step)))
    size = recipe.data.image_size
    plain = Preprocessing(size, recipe.data.interpolation, (0.0,) * 3, (1.0,) * 3)
    scans = list(decode_scans(rows, plain))
    readable = [
        (scan.image, row)
        for scan, row in zip(scans, rows.to_pylist(), strict=True)
        if scan.image is not None
    ][:SCANS]
    if not readable:
        raise UsageError(f"none of {len(scans)} scans can be read: {scans[0].reason}")
    tiles, captions = [], []
    for image, row in readable:
        tiles.append(image)
        captions.append(str(row["label"]))
        for epoch in range(EPOCHS):
            tiles.append(Augmenter(recipe.augment, recipe.seed, epoch)(image, row["scan_id"]))
            captions.append(f"epoch {epoch + 1}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, contact_sheet(tiles, EPOCHS + 1, captions, tile_size=160))
