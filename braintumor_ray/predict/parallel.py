"""The predictor on several cores of one process: a thread per batch, not a team per operation.

A team of threads inside each operation waits for its slowest member hundreds of times per batch,
which costs most where other processes (the decoders) want the same cores. Whole batches on threads
of their own wait once per call.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from braintumor_ray.data.preprocess import GrayImage
from braintumor_ray.predict.predictor import Columns, Predictor


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

    def predict(self, squares: Sequence[GrayImage], heads: npt.NDArray[np.float32]) -> Columns:
        """As `Predictor.predict`, with maps."""
        size = self.predictor.batch_size
        starts = range(0, max(len(squares), 1), size)
        batches = [(squares[i : i + size], heads[i : i + size]) for i in starts]
        parts = list(self._pool.map(lambda batch: self.predictor.predict(*batch), batches))
        return {name: _join([part[name] for part in parts]) for name in parts[0]}


def _join(parts: Sequence[Any]) -> Any:  # noqa: ANN401 - lists or arrays
    if isinstance(parts[0], list):
        return [value for part in parts for value in part]
    return np.concatenate(parts)


def _one_thread_per_operation() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
