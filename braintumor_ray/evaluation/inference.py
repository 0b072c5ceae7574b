"""Decoding and predicting the scans of a catalog in one process, a batch at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintumor_ray.data.decode import DecodeLimits
from braintumor_ray.data.duplicates import duplicate_groups
from braintumor_ray.data.prepare import HASHING_WORKER, Prepared, unpack_hashes
from braintumor_ray.data.reading import group_frames, prepare_scans
from braintumor_ray.data.sandbox import DecodeSandbox
from braintumor_ray.predict.predictor import Predictor, softmax

TTA_DEGREES = 7.0  # well inside what patients turn their heads
Progress = Callable[[int, int], None]
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
    """

    status: list[str]
    reason: list[str | None]
    pixel_sha256: list[str | None]
    shapes: list[tuple[int, int] | None]
    image_groups: NDArray[np.int64]
    logits: NDArray[np.float32]

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which scans have logits, bool (n,)."""
        return np.array([status == "ok" for status in self.status], dtype=bool)


def predict_catalog(
    predictor: Predictor,
    catalog: pa.Table,
    *,
    tta: bool = False,
    limits: DecodeLimits | None = None,
    progress: Progress | None = None,
) -> ScanOutputs:
    """Run a bundle over every scan of a catalog; memory holds one batch of images.

    Args:
        predictor: of the bundle.
        catalog: with columns `uri` and `frame`.
        tta: average the logits over `test_time_views`.
        limits: what a file may cost.
        progress: called with (scans done, scans).
    """
    k = len(predictor.bundle.fields.class_names)
    scans: list[Prepared] = []
    logits: list[NDArray[np.float32]] = [np.empty((0, k), np.float32)]
    with DecodeSandbox(HASHING_WORKER) as sandbox:
        files = group_frames(catalog["uri"].to_pylist(), catalog["frame"].to_pylist())
        preprocessing = predictor.bundle.preprocessing
        source = prepare_scans(files, sandbox, preprocessing, limits or DecodeLimits())
        for batch in _batches(source, predictor.batch_size):
            logits.append(_batch_logits(predictor, batch, k, tta))
            scans += [_without_image(scan) for scan in batch]
            if progress:
                progress(len(scans), catalog.num_rows)
    return ScanOutputs(
        [scan.status for scan in scans],
        [scan.reason for scan in scans],
        [scan.pixel_sha256 for scan in scans],
        [None if scan.height is None else (scan.height, scan.width or 0) for scan in scans],
        _image_groups(scans),
        np.concatenate(logits),
    )


def test_time_views(images: Images) -> Iterator[Images]:
    """The images as they are, mirrored left-right, and both turned by 7 degrees either way.

    Args:
        images: uint8 (n, S, S).

    Yields:
        uint8 (n, S, S), six times; what a turn brings in repeats the picture's edge.
    """
    for view in (images, np.ascontiguousarray(images[:, :, ::-1])):
        yield view
        yield _turned(view, TTA_DEGREES)
        yield _turned(view, -TTA_DEGREES)


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities (n, k) exactly as `Predictor` makes them from logits (n, k)."""
    return softmax(logits / temperature)


def _batch_logits(
    predictor: Predictor, batch: list[Prepared], k: int, tta: bool
) -> NDArray[np.float32]:
    logits = np.full((len(batch), k), np.nan, np.float32)
    rows = [row for row, scan in enumerate(batch) if scan.image is not None]
    if rows:
        images = np.stack([batch[row].image for row in rows])  # type: ignore[misc]
        views = test_time_views(images) if tta else [images]
        logits[rows] = np.mean(
            [predictor.forward(view, explain=False).logits for view in views], axis=0
        )
    return logits


def _turned(images: Images, degrees: float) -> Images:
    size = images.shape[1]
    centre = ((size - 1) / 2, (size - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, degrees, 1.0)
    turned: list[Any] = [
        cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
        for image in images
    ]
    return np.stack(turned)


def _image_groups(scans: list[Prepared]) -> NDArray[np.int64]:
    dhashes, dct_hashes, flat = unpack_hashes([scan.hashes for scan in scans])
    digests = [scan.pixel_sha256 for scan in scans]
    return duplicate_groups(digests, dhashes, flat=flat, dct_hashes=dct_hashes)


def _without_image(scan: Prepared) -> Prepared:
    return Prepared(
        scan.status, scan.reason, None, scan.height, scan.width, scan.pixel_sha256, scan.hashes
    )


def _batches(scans: Iterator[Prepared], size: int) -> Iterator[list[Prepared]]:
    while batch := list(islice(scans, size)):
        yield batch
