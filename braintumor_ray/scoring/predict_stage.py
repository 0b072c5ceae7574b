"""The archive job's second stage, decoded rows to result rows; no Ray in here."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from braintumor_ray.decode.head import Box
from braintumor_ray.models.bundle import Bundle, load_bundle
from braintumor_ray.predict.options import PredictorOptions
from braintumor_ray.predict.predictor import Columns, Predictor
from braintumor_ray.predict.schema import result_schema
from braintumor_ray.scoring.decode_stage import PREPARED
from braintumor_ray.scoring.options import PredictSettings
from braintumor_ray.types import GrayImage

Report = Callable[[int, float], None]
logger = logging.getLogger(__name__)


class PredictStage:
    """Decoded rows in; out come rows of the contract, `predict.schema.result_schema`.

    Args:
        settings: of the predictor.
        fingerprint: written into each row.
        report: called with scans and seconds of each block.
        bundle: that of the settings, where it is loaded already.
    """

    def __init__(
        self,
        settings: PredictSettings,
        fingerprint: str,
        report: Report | None = None,
        bundle: Bundle | None = None,
    ) -> None:
        chosen = PredictorOptions.of(
            settings, engine=settings.engine or "torch", parallel=settings.torch_threads or 1
        )
        self._predictor = Predictor(bundle or load_bundle(settings.bundle), chosen)
        made = {"engine": self._predictor.choice.engine, "precision": self._predictor.precision}
        logger.info("predictor is ready", extra=made | {"device": str(self._predictor.device)})
        threads = settings.torch_threads
        parallel = ParallelPredictor(self._predictor, threads) if threads else self._predictor
        self._predict = parallel.predict
        self._fingerprint = fingerprint
        self._report = report
        self._schema = result_schema(
            self._predictor.cam_shape, settings.methods, self._predictor.bundle.optional_columns
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Predict the ok rows; the others keep their status and reason."""
        started = time.perf_counter()
        usable = np.flatnonzero(np.array(rows["image"].is_valid()))
        predictions = self._predict(*self._prepared(rows, usable))
        columns = {name: rows[name] for name in rows.column_names if name not in PREPARED}
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

    def _prepared(
        self, rows: pa.Table, usable: npt.NDArray[np.int64]
    ) -> tuple[list[npt.NDArray[Any]], npt.NDArray[np.float32], list[Box] | None]:
        """Squares, as views, head weights, and boxes of the usable rows."""
        size = self._predictor.bundle.preprocessing.image_size
        shape = (3, *self._predictor.cam_shape)
        squares = _views(rows["image"], usable, (size, size), np.uint8)
        heads = _views(rows["head"], usable, shape, np.float32)
        boxes = None
        if "box" in rows.column_names:
            boxes = [Box(*box) for box in rows["box"].take(pa.array(usable)).to_pylist()]
        return squares, np.array(heads, np.float32).reshape(-1, *shape), boxes  # of no scans, too


def _views(
    column: pa.ChunkedArray, usable: npt.NDArray[np.int64], shape: tuple[int, ...], dtype: type
) -> list[npt.NDArray[Any]]:
    """Some rows of a binary column, each an array of `shape` on Arrow's memory."""
    return [np.frombuffer(column[int(row)].as_buffer(), dtype).reshape(shape) for row in usable]


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


class ParallelPredictor:
    """Calls a predictor for several batches at a time; the same columns, in the same order.

    Changes this process for good: one torch thread per batch. For a process that does nothing
    else.

    Args:
        predictor: safe to call from several threads.
        threads: batches at a time.
    """

    def __init__(self, predictor: Predictor, threads: int) -> None:
        self.predictor = predictor
        _one_thread_per_operation()
        self._pool = ThreadPoolExecutor(threads, initializer=_one_thread_per_operation)

    def predict(
        self,
        squares: Sequence[GrayImage],
        heads: npt.NDArray[np.float32],
        boxes: Sequence[Box] | None = None,
    ) -> Columns:
        """As `Predictor.predict`, with maps."""
        size = self.predictor.batch_size
        starts = range(0, max(len(squares), 1), size)
        batches = [
            (squares[i : i + size], heads[i : i + size], boxes and boxes[i : i + size])
            for i in starts
        ]
        parts = list(self._pool.map(lambda batch: self.predictor.predict(*batch), batches))
        return {name: _join([part[name] for part in parts]) for name in parts[0]}


def _join(parts: Sequence[Any]) -> Any:  # noqa: ANN401 - lists or arrays
    if isinstance(parts[0], list):
        return [value for part in parts for value in part]
    return np.concatenate(parts)


def _one_thread_per_operation() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
