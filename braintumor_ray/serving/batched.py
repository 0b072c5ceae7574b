"""The predictor of this process, and the batches that it is given. No Ray here."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch

from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.serving.batching import Batcher
from braintumor_ray.serving.model import (
    Explain,
    ModelCard,
    Row,
    batches_at_once,
    describe_model,
    make_predictor,
    predict_rows,
    threads_of_replica,
)
from braintumor_ray.serving.settings import ServingSettings
from braintumor_ray.types import GrayImage


class BatchedPredictor:
    """A predictor that predicts whatever waits together; used from one event loop.

    Args:
        settings: what predicts.
        observe: told the size of each batch.

    Attributes:
        card: what the model is.
    """

    def __init__(
        self, settings: ServingSettings, observe: Callable[[int], None] = lambda size: None
    ) -> None:
        cv2.setNumThreads(1)  # finding a head in a team of threads costs twice the CPU
        self._threads = threads_of_replica(settings)
        # Made by the thread that uses it: each thread that computes keeps a team of OpenMP, and
        # with two teams on its cores a lone prediction sleeps after every layer (280 times).
        thread = ThreadPoolExecutor(1, "predict")
        self._predictor = thread.submit(self._make_predictor, settings).result()
        self.card: ModelCard = describe_model(self._predictor, settings.bundle)
        lanes = batches_at_once(settings) if self.card.device == "cpu" else 1
        self._share = self._threads // lanes
        self._batched = Batcher(
            self._predict, settings.max_batch_size, observe, lanes=lanes, first=thread
        )
        blank = np.zeros((self.card.image_size,) * 2, np.uint8)
        for count in (1, settings.max_batch_size):
            self._batched.warm_up([(blank, True)] * count)

    def _make_predictor(self, settings: ServingSettings) -> Predictor:
        # Engines other than torch keep the number of threads with which they are made.
        torch.set_num_threads(self._threads)
        return make_predictor(settings, batches_at_once(settings))

    async def __call__(self, items: Sequence[tuple[GrayImage, Explain]]) -> list[Row]:
        """One row for each uint8 (S, S), in order."""
        return await asyncio.gather(*(self._batched(item) for item in items))

    def _predict(self, items: Sequence[tuple[GrayImage, Explain]], alone: bool) -> list[Row]:
        # OpenMP counts threads per calling thread, and Ray starts actors with one.
        torch.set_num_threads(self._threads if alone else self._share)
        squares = [square for square, _ in items]
        return predict_rows(self._predictor, squares, [explain for _, explain in items])
