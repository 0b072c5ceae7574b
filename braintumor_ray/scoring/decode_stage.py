"""The archive job's first stage, catalog rows to decoded rows; neither Ray nor torch in here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from braintumor_ray.data.decode import DecodeLimits
from braintumor_ray.data.identity import UriRedaction
from braintumor_ray.data.prepare import WORKER, Prepared
from braintumor_ray.data.preprocess import Preprocessing
from braintumor_ray.data.reading import group_frames, prepare_scans
from braintumor_ray.data.sandbox import DecodeSandbox
from braintumor_ray.explain.regions import head_weights
from braintumor_ray.predict.schema import KEYS
from braintumor_ray.scoring.redaction import redact_catalog

ROW_COLUMNS = ("scan_id", "uri", "frame", *KEYS)
PREPARED = ("image", "head")  # what the predictor takes of a scan


@dataclass(frozen=True)
class DecodeSettings:
    """How scans are decoded, and what is told of where they are.

    Attributes:
        limits: what a file may cost.
        timeout_s: longest time for one file, seconds.
        worker: the function that does it, `module:function`.
        redaction: stands in for every URI in the rows; None: they are kept.
    """

    limits: DecodeLimits = field(default_factory=DecodeLimits)
    timeout_s: float = 30.0
    worker: str = WORKER
    redaction: UriRedaction | None = None


class DecodeStage:
    """Catalog rows in; out come rows with status, pixels' size and hash, and what is predicted on.

    That is the input square, uint8 S * S bytes, and the head's weights, float32 3 * h * w bytes
    (`explain.regions.head_weights`): whatever costs CPU is done here, where there are as many
    processes as CPUs, and not beside a GPU. Both are null where the scan is not ok.
    """

    def __init__(
        self, preprocessing: Preprocessing, settings: DecodeSettings, cam_shape: tuple[int, int]
    ) -> None:
        self._preprocessing = preprocessing
        self._settings = settings
        self._cam_shape = cam_shape
        cv2.setNumThreads(1)  # of this process; there are as many decoders as CPUs
        self._sandbox = DecodeSandbox(settings.worker, settings.timeout_s)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Decode a block; the rows keep their order and their number."""
        files = group_frames(rows["uri"].to_pylist(), rows["frame"].to_pylist())
        limits = self._settings.limits
        prepared = prepare_scans(files, self._sandbox, self._preprocessing, limits)
        scans, heads = [], []
        for scan in prepared:
            scans.append(scan)
            heads.append(self._head(scan))  # while the child decodes the next
        kept = redact_catalog(rows, self._settings.redaction).select(ROW_COLUMNS)
        for name, values in _pixel_columns(scans).items():
            kept = kept.append_column(name, values)
        return kept.append_column("head", _as_binary(heads))

    def _head(self, scan: Prepared) -> npt.NDArray[np.float32] | None:
        return None if scan.image is None else head_weights([scan.image], self._cam_shape)


def _pixel_columns(scans: Sequence[Prepared]) -> dict[str, pa.Array]:
    return {
        "status": pa.array([scan.status for scan in scans], pa.string()),
        "reason": pa.array([scan.reason for scan in scans], pa.string()),
        "height": pa.array([scan.height for scan in scans], pa.int32()),
        "width": pa.array([scan.width for scan in scans], pa.int32()),
        "pixel_sha256": pa.array([scan.pixel_sha256 for scan in scans], pa.string()),
        "image": _as_binary([scan.image for scan in scans]),
    }


def _as_binary(arrays: Sequence[npt.NDArray[Any] | None]) -> pa.Array:
    """The arrays' bytes as a column, null for None."""
    views = [None if array is None else array.data.cast("B") for array in arrays]
    return pa.array(views, pa.large_binary())
