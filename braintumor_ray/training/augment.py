"""Random changes of a scan, drawn from (seed, epoch, scan) alone."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.overlay import contact_sheet, write_png
from braintumor_ray.recipes.schema import AugmentSection, Recipe
from braintumor_ray.training.lesions import SOME_TUMOR, LesionMaker
from braintumor_ray.training.recipe_network import unit_preprocessing
from braintumor_ray.types import GrayImage

ERASED_AREA = (0.02, 0.15)
"""Share of the picture that an erased rectangle covers: small enough to leave most tumors."""
ERASED_ASPECT = (0.5, 2.0)
MOST_ERASED = 0.3  # share of a known tumor that may be erased
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
        return self.with_mask(image, None, scan_id)[0]

    def random(self, scan_id: int, *more: int) -> np.random.Generator:
        """The draws of a scan in this epoch; `more` distinguishes other draws for it."""
        entropy = [self.seed, self.epoch, scan_id & 0xFFFF_FFFF_FFFF_FFFF, *more]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def with_mask(
        self,
        image: GrayImage,
        mask: GrayImage | None,
        scan_id: int,
        random: np.random.Generator | None = None,
    ) -> tuple[GrayImage, GrayImage | None]:
        """Change an image and, in the same way, the mask of its tumor, uint8 (S, S) of 0 to 255."""
        random = random or self.random(scan_id)
        side = self.size or image.shape[0]
        matrix = self._matrix(random, image.shape[0], side)
        shown = _warped(image, matrix, side, _BORDERS[self.settings.fill])
        kept = None if mask is None else _warped(mask, matrix, side, cv2.BORDER_CONSTANT)
        shown = scanner_style(random, self._tone(random, shown), self.settings)
        return self._erase(random, shown, kept), kept

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

    def _erase(
        self, random: np.random.Generator, image: GrayImage, mask: GrayImage | None
    ) -> GrayImage:
        """Random erasing (Zhong et al. 2020), in one gray; `image` is ours to change.

        A known tumor is not erased: its label would be wrong.
        """
        if not self.settings.erase or random.random() >= self.settings.erase:
            return image
        side = image.shape[0]
        area = random.uniform(*ERASED_AREA) * side**2
        aspect = np.exp(random.uniform(*np.log(ERASED_ASPECT)))
        height, width = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        top, left = random.integers(0, side - height + 1), random.integers(0, side - width + 1)
        gray = random.integers(0, 256)
        area = (slice(top, top + height), slice(left, left + width))
        if mask is None or mask[area].sum() <= MOST_ERASED * mask.sum():
            image[area] = gray
        return image


def scanner_style(
    random: np.random.Generator, image: GrayImage, settings: AugmentSection
) -> GrayImage:
    """How another scanner, sequence or export might have shown the same slice, uint8 (S, S).

    Each change is drawn by its own probability in `settings`; without any, nothing is drawn.
    """
    if settings.sequence and random.random() < settings.sequence:
        image = np.asarray(cv2.LUT(image, _curve(random)), np.uint8)
    if settings.resolution and random.random() < settings.resolution:
        image = _resampled(random, image)
    if settings.blur and random.random() < settings.blur:
        image = _blurred_or_sharpened(random, image)
    image = _intensities(random, image, settings)
    if settings.invert and random.random() < settings.invert:
        image = np.uint8(255) - image
    if settings.jpeg and random.random() < settings.jpeg:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(25, 95))]
        encoded = cv2.imencode(".jpg", image, quality)[1]
        image = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), np.uint8)
    return image


def _curve(random: np.random.Generator) -> GrayImage:
    """A lookup table, uint8 (256,): mostly rising, sometimes any, as sequences differ."""
    if random.random() < 0.6:
        grays = np.sort(random.uniform(0, 255, 5))
    else:
        grays = random.uniform(30, 255, 5)
    grays *= random.uniform(200, 255) / grays.max()
    table = np.interp(np.arange(256), [0, 20, 70, 125, 180, 235, 255], [0, 8, *grays])
    return table.astype(np.uint8)


def _resampled(random: np.random.Generator, image: GrayImage) -> GrayImage:
    """Lower resolution: sampled down and up again."""
    size = (image.shape[1], image.shape[0])
    share = random.uniform(0.35, 0.9)
    small = (max(8, round(size[0] * share)), max(8, round(size[1] * share)))
    smaller = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    method = cv2.INTER_LINEAR if random.random() < 0.5 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(smaller, size, interpolation=method), np.uint8)


def _blurred_or_sharpened(random: np.random.Generator, image: GrayImage) -> GrayImage:
    blurred = cv2.GaussianBlur(image, (0, 0), random.uniform(0.5, 1.5))
    if random.random() < 0.5:
        return np.asarray(blurred, np.uint8)
    return np.asarray(cv2.addWeighted(image, 1.7, blurred, -0.7, 0), np.uint8)


def _intensities(
    random: np.random.Generator, image: GrayImage, settings: AugmentSection
) -> GrayImage:
    """Bias field, gamma, background and noise, on floats in [0, 1]."""
    chances = (settings.bias_field, settings.gamma, settings.background, settings.noise)
    if not any(chances):
        return image
    field, gamma, background, noise = (random.random() < chance for chance in chances)
    values = image.astype(np.float32) / 255
    if field:
        coarse = random.normal(0, 0.35, (3, 3)).astype(np.float32)
        size = (image.shape[1], image.shape[0])
        values *= np.exp(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))
    if gamma:
        values = values.clip(0, 1) ** np.float32(np.exp(random.uniform(-0.5, 0.5)))
    if background:
        values = np.where(values < 0.04, np.float32(random.uniform(0, 0.15)), values)
    if noise:
        sigma = np.float32(random.uniform(0.005, 0.06))
        values += random.standard_normal(values.shape, np.float32) * sigma
    return (values.clip(0, 1) * 255).astype(np.uint8)


def _warped(image: GrayImage, matrix: npt.NDArray[np.float64], side: int, border: int) -> GrayImage:
    moved = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(moved, dtype=np.uint8)


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


def preview_augmentation(catalog: pa.Table, recipe: Recipe, classes: ClassMap, path: Path) -> None:
    """Write a sheet with a row per scan: as the network gets it, then as in the first epochs.

    Lesions are drawn as in training; those of other scans (`transplant`, `heal`) are left out.

    Raises:
        UsageError: none of the first scans can be read.
    """
    step = max(1, catalog.num_rows // _CANDIDATES)
    rows = catalog.take(pa.array(range(0, catalog.num_rows, step)))
    scans = list(decode_scans(rows, unit_preprocessing(recipe)))
    readable = [
        (scan.image, row)
        for scan, row in zip(scans, rows.to_pylist(), strict=True)
        if scan.image is not None
    ]
    if not readable:
        raise UsageError(f"none of {len(scans)} scans can be read: {scans[0].reason}")
    readable = readable[:: max(1, len(readable) // SCANS)][:SCANS]  # of all classes
    tiles, captions = [], []
    for image, row in readable:
        name = classes.apply(row["label"])
        healthy = name is not None and name not in classes.with_tumor
        tiles.append(image)
        captions.append(str(row["label"]))
        for epoch in range(EPOCHS):
            shown, drawn = _changed(image, row["scan_id"], recipe, epoch, healthy)
            tiles.append(shown)
            captions.append(f"epoch {epoch + 1}{', lesion' if drawn else ''}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, contact_sheet(tiles, EPOCHS + 1, captions, tile_size=160))


def _changed(
    image: GrayImage, scan_id: int, recipe: Recipe, epoch: int, healthy: bool
) -> tuple[GrayImage, bool]:
    """A scan as in an epoch of the first stage, and whether a lesion was drawn into it."""
    augmenter = Augmenter(recipe.augment, recipe.seed, epoch, recipe.stages[0].image_size)
    random, label = augmenter.random(scan_id), 0
    if healthy:
        lesions = LesionMaker(recipe.lesions, negative=label)
        image, _, label = lesions(random, image, None, label)
    return augmenter.with_mask(image, None, scan_id, random)[0], label == SOME_TUMOR
