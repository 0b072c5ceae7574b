"""Decoding and predicting the scans of a catalog in one process, a batch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import softmax

from braintumor_ray.decode.prepare import PreparedScan
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.explain.regions import (
    area_shares,
    head_regions,
    heat_shares_batch,
    region_weights,
)
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.splits.duplicates import image_groups
from braintumor_ray.types import Progress

TTA_DEGREES = 7.0  # patients turn their heads further than this
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class ScanOutputs:
    """What became of each scan of a catalog, in its order.

    Attributes:
        status: 'ok', 'quarantined' or 'skipped'.
        reason: why not ok, else None.
        pixel_sha256: of the decoded image; None where not ok.
        shapes: (height, width) of the decoded image; None where not ok.
        image_groups: int64 (n,), exact and near copies share a number; others have their own.
        logits: float32 (n, k) before temperature; NaN where not ok.
        maps: raw maps float16 (n, h, w) by method, of the plain view; zeros where not ok; empty
            without `explain`.
        heat: float64 (n, 3), shares of the first method's heat inside, on the rim and in the
            background; NaN where unknown.
        area: float64 (n, 3), the same shares of the picture's area.
    """

    status: list[str]
    reason: list[str | None]
    pixel_sha256: list[str | None]
    shapes: list[tuple[int, int] | None]
    image_groups: NDArray[np.int64]
    logits: NDArray[np.float32]
    maps: dict[str, NDArray[np.float16]] = field(default_factory=dict)
    heat: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    area: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which scans have logits, bool (n,)."""
        return np.array([status == "ok" for status in self.status], dtype=bool)


def predict_catalog(
    predictor: Predictor,
    catalog: pa.Table,
    *,
    tta: bool = False,
    explain: bool = False,
    limits: DecodeLimits | None = None,
    progress: Progress | None = None,
) -> ScanOutputs:
    """Run a bundle over every scan of a catalog; memory holds one batch of images.

    Args:
        predictor: of the bundle.
        catalog: as for `decode.files.files_of`.
        tta: average the logits over `test_time_views`.
        explain: keep raw maps and where their heat is.
        limits: what a file may cost.
        progress: called with (scans done, scans).
    """
    scans: list[PreparedScan] = []
    n, shape = catalog.num_rows, predictor.cam_shape
    logits = np.full((n, len(predictor.bundle.fields.class_names)), np.nan, np.float32)
    maps = {name: np.zeros((n, *shape), np.float16) for name in predictor.methods if explain}
    heat, area = np.full((n, 3), np.nan), np.full((n, 3), np.nan)
    source = decode_scans(catalog, predictor.bundle.preprocessing, limits=limits, hashed=True)
    while batch := list(islice(source, predictor.batch_size)):
        rows = [row for row, scan in enumerate(batch, len(scans)) if scan.image is not None]
        if rows:
            images = np.stack([scan.image for scan in batch if scan.image is not None])
            logits[rows], found = _predict(predictor, images, tta=tta, explain=explain)
            for name, values in found.items():
                maps[name][rows] = values.clip(0, np.finfo(np.float16).max)
            if explain:
                heat[rows], area[rows] = _regions(images, found[predictor.methods[0]])
        # Without their images: memory must not grow with the catalog.
        scans += [replace(scan, image=None) for scan in batch]
        if progress:
            progress(len(scans), n)
    digests = [scan.pixel_sha256 for scan in scans]
    return ScanOutputs(
        [scan.status for scan in scans],
        [scan.reason for scan in scans],
        digests,
        [None if scan.height is None else (scan.height, scan.width or 0) for scan in scans],
        image_groups(digests, [scan.hashes for scan in scans]),
        logits,
        maps,
        heat,
        area,
    )


def test_time_views(images: Images) -> Iterator[Images]:
    """The images, the images mirrored left-right, and both turned by 7 degrees either way.

    Args:
        images: uint8 (n, S, S).

    Yields:
        uint8 (n, S, S), six times; a turn fills the corners with the picture's edge pixels.
    """
    for view in (images, np.ascontiguousarray(images[:, :, ::-1])):
        yield view
        yield _turned(view, TTA_DEGREES)
        yield _turned(view, -TTA_DEGREES)


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities (n, k) exactly as `Predictor` makes them from logits (n, k)."""
    return softmax(logits / temperature, axis=1)


def _predict(
    predictor: Predictor, images: Images, *, tta: bool, explain: bool
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Logits (n, k), averaged over views with `tta`, and the raw maps of the plain view."""
    plain = predictor.forward(images, explain=explain)
    logits = [plain.logits]
    for view in list(test_time_views(images))[1:] if tta else []:
        logits.append(predictor.forward(view, explain=False).logits)
    return np.mean(logits, axis=0), plain.maps


def _regions(
    squares: Images, maps: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares (n, 3) of heat and of area inside, on the rim and in the background."""
    heads = [head_regions(square) for square in squares]
    size = (maps.shape[1], maps.shape[2])
    heat = heat_shares_batch(maps, np.stack([region_weights(head, size) for head in heads]))
    area = np.array([area_shares(head) for head in heads], dtype=np.float64)
    return heat, area


def _turned(images: Images, degrees: float) -> Images:
    size = images.shape[1]
    center = ((size - 1) / 2, (size - 1) / 2)
    matrix = cv2.getRotationMatrix2D(center, degrees, 1.0)
    turned: list[Any] = [
        cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
        for image in images
    ]
    return np.stack(turned)
