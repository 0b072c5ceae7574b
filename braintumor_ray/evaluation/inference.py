"""Decoding and predicting the scans of a catalog in one process, a batch at a time."""

from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import softmax

from braintumor_ray.decode.head import WHOLE
from braintumor_ray.decode.prepare import PreparedScan
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.explain.placement import as_stored, picture_maps
from braintumor_ray.explain.regions import (
    area_shares,
    head_regions,
    region_weights,
)
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.splits.duplicates import image_groups
from braintumor_ray.types import Progress


@dataclass(frozen=True)
class ScanOutputs:
    """What became of each scan of a catalog, in its order.

    Attributes:
        status: 'ok', 'quarantined' or 'skipped'.
        reason: why not ok, else None.
        pixel_sha256: of the decoded image; None where not ok.
        shapes: (height, width) of the decoded image; None where not ok.
        hashes: perceptual hashes, see `decode.hashes.pack_hashes`; None where not ok.
        image_groups: int64 (n,), exact and near copies share a number; others have their own.
        logits: float32 (n, k) before temperature; NaN where not ok.
        maps: raw maps float16 (n, h, w) by method, of the scans as they are; zeros where not ok;
            empty without `explain`.
        heat: float64 (n, 3), shares of the first method's heat inside, on the rim and in the
            background; NaN where unknown.
        area: float64 (n, 3), the same shares of the picture's area.
        out_of_domain: bool (n,), as `Predictor.out_of_domain`; False where not ok.
        pooled: float32 (n, C), global average of the target map; NaN where not ok.
    """

    status: list[str]
    reason: list[str | None]
    pixel_sha256: list[str | None]
    hashes: list[bytes | None]
    shapes: list[tuple[int, int] | None]
    image_groups: NDArray[np.int64]
    logits: NDArray[np.float32]
    maps: dict[str, NDArray[np.float16]] = field(default_factory=dict)
    heat: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    area: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    out_of_domain: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    pooled: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which scans have logits, bool (n,)."""
        return np.array([status == "ok" for status in self.status], dtype=bool)


@dataclass(frozen=True)
class _Batch:
    """A batch's part of `ScanOutputs`."""

    logits: NDArray[np.float32]
    maps: dict[str, NDArray[np.float16]]
    heat: NDArray[np.float64]
    area: NDArray[np.float64]
    out_of_domain: NDArray[np.bool_]
    pooled: NDArray[np.float32]


def predict_catalog(
    predictor: Predictor,
    catalog: pa.Table,
    *,
    explain: bool = False,
    limits: DecodeLimits | None = None,
    progress: Progress | None = None,
) -> ScanOutputs:
    """Run a bundle over every scan of a catalog; memory holds one batch of images.

    Args:
        predictor: of the bundle.
        catalog: as for `decode.files.files_of`.
        explain: keep raw maps and where their heat is.
        limits: what a file may cost.
        progress: called with (scans done, scans).
    """
    scans: list[PreparedScan] = []
    batches = [_empty(predictor, explain)]
    source = decode_scans(catalog, predictor.bundle.preprocessing, limits=limits, hashed=True)
    while batch := list(islice(source, predictor.batch_size)):
        batches.append(_predict(predictor, batch, explain=explain))
        scans += [replace(scan, image=None) for scan in batch]
        if progress:
            progress(len(scans), catalog.num_rows)
    return ScanOutputs(
        [scan.status for scan in scans],
        [scan.reason for scan in scans],
        [scan.pixel_sha256 for scan in scans],
        [scan.hashes for scan in scans],
        [None if scan.height is None else (scan.height, scan.width or 0) for scan in scans],
        image_groups([scan.pixel_sha256 for scan in scans], [scan.hashes for scan in scans]),
        np.concatenate([batch.logits for batch in batches]),
        {n: np.concatenate([batch.maps[n] for batch in batches]) for n in batches[0].maps},
        np.concatenate([batch.heat for batch in batches]),
        np.concatenate([batch.area for batch in batches]),
        np.concatenate([batch.out_of_domain for batch in batches]),
        np.concatenate([batch.pooled for batch in batches]),
    )


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities (n, k) exactly as `Predictor` makes them from logits (n, k)."""
    return softmax(logits / temperature, axis=1)


def _empty(predictor: Predictor, explain: bool, count: int = 0) -> _Batch:
    """Outputs of scans that cannot be read."""
    k = len(predictor.bundle.fields.class_names)
    blank = np.zeros((count, *predictor.cam_shape), np.float16)
    return _Batch(
        np.full((count, k), np.nan, np.float32),
        {name: blank.copy() for name in predictor.methods} if explain else {},
        np.full((count, 3), np.nan),
        np.full((count, 3), np.nan),
        np.zeros(count, bool),
        np.full((count, predictor.bundle.map_shape[0]), np.nan, np.float32),
    )


def _predict(predictor: Predictor, batch: list[PreparedScan], *, explain: bool) -> _Batch:
    result = _empty(predictor, explain, len(batch))
    images = [(row, scan.image) for row, scan in enumerate(batch) if scan.image is not None]
    if not images:
        return result
    rows = [row for row, _ in images]
    boxes = [batch[row].box or WHOLE for row in rows]
    squares = np.stack([image for _, image in images])
    plain = predictor.forward(squares, explain=explain)
    result.logits[rows] = plain.logits
    result.pooled[rows] = plain.pooled
    frame = predictor.bundle.map_frame
    for name, maps in plain.maps.items():
        result.maps[name][rows] = as_stored(picture_maps(maps, boxes, frame))
    heads = [head_regions(square) for square in squares]
    weights = np.stack([region_weights(head, predictor.cam_shape) for head in heads])
    result.out_of_domain[rows] = predictor.out_of_domain(plain, weights)
    if explain:
        # Shares (n, 3) of heat and of area inside, on the rim and in the background.
        result.heat[rows] = predictor.heat_shares(plain, weights)
        result.area[rows] = [area_shares(head) for head in heads]
    return result
