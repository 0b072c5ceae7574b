"""The predictor of this process, and the batches that it is given. No Ray here."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import cv2
import numpy as np
import torch

from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.serving.batching import WORTHWHILE_BATCH, Batcher, Gatherer
from braintumor_ray.serving.model import (
    Explain,
    ModelCard,
    Row,
    batches_at_once,
    describe_model,
    lanes,
    make_predictor,
    predict_rows,
    threads_of_replica,
)
from braintumor_ray.serving.settings import ServingSettings
from braintumor_ray.types import GrayImage


class LocalModel:
    """A predictor in this process, as `serving.model.Model`; scans that wait go together.

    Args:
        settings: what predicts.
        observe: told the size of each batch.
    """

    def __init__(
        self, settings: ServingSettings, observe: Callable[[int], None] = lambda size: None
    ) -> None:
        cv2.setNumThreads(1)  # finding a head in a team of threads costs twice the CPU
        self._threads = threads_of_replica(settings)
        self._share = max(1, self._threads // batches_at_once(settings))
        # Made by the thread that uses it: each thread that computes keeps a team of OpenMP, and
        # with two teams on its cores a lone prediction sleeps after every layer (280 times).
        thread = ThreadPoolExecutor(1, "predict")
        self._predictor = thread.submit(self._make_predictor, settings).result()
        self._card = describe_model(self._predictor, settings.bundle)
        on_cpu = self._card.device == "cpu"
        if not on_cpu:
            self._share = self._threads
        self._batched = Batcher(
            self._predict,
            settings.max_batch_size,
            observe,
            lanes=lanes(settings) if on_cpu else 1,
            first=thread,
        )
        # A front's scans are still being decoded while others wait: with them, batches are larger.
        self._gathered = Gatherer(
            self.predict_all, WORTHWHILE_BATCH, settings.max_batch_size, lanes(settings)
        )
        blank = np.zeros((self._card.image_size,) * 2, np.uint8)
        for count in (1, settings.max_batch_size):
            self._batched.warm_up([(blank, True)] * count)

    def _make_predictor(self, settings: ServingSettings) -> Predictor:
        # Engines other than torch keep the number of threads with which they are made.
        torch.set_num_threads(self._share if settings.together else self._threads)
        return make_predictor(settings, lanes(settings))

    async def predict(self, square: GrayImage, explain: Explain) -> Row:
        """As `Model.predict`."""
        return await self._gathered((square, explain))

    async def predict_all(self, items: Sequence[tuple[GrayImage, Explain]]) -> list[Row]:
        """One row for each, in order; for callers that have gathered what they want."""
        return await asyncio.gather(*(self._batched(item) for item in items))

    def coming(self, count: int) -> AbstractContextManager[None]:
        """As `Model.coming`."""
        return self._gathered.coming(count)

    async def card(self) -> ModelCard:
        """As `Model.card`."""
        return self._card

    def _predict(self, items: Sequence[tuple[GrayImage, Explain]], alone: bool) -> list[Row]:
        # OpenMP counts threads per calling thread, and Ray starts actors with one.
        torch.set_num_threads(
            self._threads if alone and not self._gathered.n_coming else self._share
        )
        squares = [square for square, _ in items]
        return predict_rows(self._predictor, squares, [explain for _, explain in items])
