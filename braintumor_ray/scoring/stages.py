"""The two stages of the archive job, as callables on Arrow tables; no Ray in here."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from braintumor_ray.data.decode import DecodeLimits
from braintumor_ray.data.identity import UriRedaction
from braintumor_ray.data.prepare import WORKER, Prepared
from braintumor_ray.data.preprocess import Preprocessing
from braintumor_ray.data.reading import group_frames, prepare_scans
from braintumor_ray.data.sandbox import DecodeSandbox
from braintumor_ray.predict.parallel import ParallelPredictor
from braintumor_ray.predict.predictor import CamClass, Columns, Precision, Predictor
from braintumor_ray.predict.schema import KEYS, result_schema
from braintumor_ray.scoring.redaction import redact_catalog

ROW_COLUMNS = ("scan_id", "uri", "frame", *KEYS)
Report = Callable[[int, float], None]


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
    """Catalog rows in; out come rows with status, pixels' size and hash, and the input square.

    The square is uint8 S * S bytes, null where the scan is not ok.
    """

    def __init__(self, preprocessing: Preprocessing, settings: DecodeSettings) -> None:
        self._preprocessing = preprocessing
        self._settings = settings
        self._sandbox = DecodeSandbox(settings.worker, settings.timeout_s)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Decode a block; the rows keep their order and their number."""
        files = group_frames(rows["uri"].to_pylist(), rows["frame"].to_pylist())
        limits = self._settings.limits
        scans = list(prepare_scans(files, self._sandbox, self._preprocessing, limits))
        kept = redact_catalog(rows, self._settings.redaction).select(ROW_COLUMNS)
        for name, values in _pixel_columns(scans).items():
            kept = kept.append_column(name, values)
        return kept


def _pixel_columns(scans: Sequence[Prepared]) -> dict[str, pa.Array]:
    squares = [None if scan.image is None else scan.image.tobytes() for scan in scans]
    return {
        "status": pa.array([scan.status for scan in scans], pa.string()),
        "reason": pa.array([scan.reason for scan in scans], pa.string()),
        "height": pa.array([scan.height for scan in scans], pa.int32()),
        "width": pa.array([scan.width for scan in scans], pa.int32()),
        "pixel_sha256": pa.array([scan.pixel_sha256 for scan in scans], pa.string()),
        "image": pa.array(squares, pa.large_binary()),
    }


@dataclass(frozen=True)
class PredictSettings:
    """How the predictor of a job is made.

    Attributes:
        torch_threads: batches at a time, each on one thread; None: one at a time, torch's threads.
    """

    bundle: str
    device: str = "auto"
    precision: Precision = "auto"
    cam_class: CamClass = "predicted"
    methods: tuple[str, ...] = ("gradcam", "gradcam_pp")
    batch_size: int | None = None
    torch_threads: int | None = None


class PredictStage:
    """Decoded rows in; out come rows of the contract, `predict.schema.result_schema`."""

    def __init__(
        self, settings: PredictSettings, fingerprint: str, report: Report | None = None
    ) -> None:
        self._predictor = Predictor.from_bundle(
            settings.bundle,
            settings.device,
            precision=settings.precision,
            cam_class=settings.cam_class,
            methods=settings.methods,
            batch_size=settings.batch_size,
        )
        threads = settings.torch_threads
        self._predict = ParallelPredictor(self._predictor, threads) if threads else self._predictor
        self._fingerprint = fingerprint
        self._report = report
        self._schema = result_schema(self._predictor.cam_shape, settings.methods)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Predict the ok rows; the others keep their status and reason."""
        started = time.perf_counter()
        usable = np.flatnonzero(np.array(rows["image"].is_valid()))
        predictions = self._predict(self._images(rows, usable))
        columns = {name: rows[name] for name in rows.column_names if name != "image"}
        columns |= as_arrow(predictions, usable, rows.num_rows, self._schema)
        count = rows.num_rows
        columns["bundle_fingerprint"] = pa.array([self._fingerprint] * count, pa.string())
        columns["scored_at"] = pa.array(
            [datetime.now(timezone.utc)] * count, self._schema.field("scored_at").type
        )
        table = pa.Table.from_arrays(
            [_column(columns[field.name], field.type) for field in self._schema],
            schema=self._schema,
        )
        if self._report:
            self._report(count, time.perf_counter() - started)
        return table

    def _images(self, rows: pa.Table, usable: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
        size = self._predictor.bundle.preprocessing.image_size
        column = rows["image"]
        return [
            np.frombuffer(column[int(i)].as_buffer(), np.uint8).reshape(size, size) for i in usable
        ]


def as_arrow(
    predictions: Columns, usable: npt.NDArray[np.int64], count: int, schema: pa.Schema
) -> dict[str, pa.Array]:
    """Predictor columns as Arrow arrays of `count` rows, null where a row is not in `usable`."""
    position = np.full(count, -1)
    position[usable] = np.arange(len(usable))
    take = pa.array(position, mask=position < 0)
    arrays = {}
    for name, values in predictions.items():
        dense = _dense(values, schema.field(name).type)
        arrays[name] = dense.take(take)
    return arrays


def _dense(values: Any, kind: pa.DataType) -> pa.Array:  # noqa: ANN401 - list or array
    if isinstance(values, list):
        return pa.array(values, kind)
    if values.ndim == 1:
        missing = np.isnan(values) if values.dtype.kind == "f" else None
        return pa.array(values, kind, mask=missing)
    # Not -1: a block without a readable scan has no rows to work the width out from.
    flat = np.ascontiguousarray(values).reshape(len(values), int(np.prod(values.shape[1:])))
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(flat.reshape(-1), kind.value_type), type=kind)


def _column(values: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - array or chunked array
    return values if values.type == kind else values.cast(kind)
