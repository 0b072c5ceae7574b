"""The predictor of this process, and the batches that it is given. No Ray here."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch

from braintumor_ray.engines.choice import resolve_engine
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.regions import head_weights
from braintumor_ray.models.bundle import CARD, load_bundle
from braintumor_ray.predict.options import PredictorOptions
from braintumor_ray.predict.predictor import Columns, Predictor
from braintumor_ray.serving.batching import Batcher
from braintumor_ray.serving.model import (
    MapChoice,
    ModelCard,
    Row,
    batches_at_once,
    threads_of_replica,
)
from braintumor_ray.serving.settings import ServingSettings
from braintumor_ray.storage import read_bytes
from braintumor_ray.types import GrayImage


class BatchedPredictor:
    """A predictor that predicts whatever waits together; used from one event loop.

    Args:
        settings: what predicts.
        observe: called with the size of each batch.

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

    async def __call__(self, items: Sequence[tuple[GrayImage, MapChoice]]) -> list[Row]:
        """One row for each uint8 (S, S), in order."""
        return await asyncio.gather(*(self._batched(item) for item in items))

    def _predict(self, items: Sequence[tuple[GrayImage, MapChoice]], alone: bool) -> list[Row]:
        # OpenMP counts threads per calling thread, and Ray starts actors with one.
        torch.set_num_threads(self._threads if alone else self._share)
        squares = [square for square, _ in items]
        return predict_rows(self._predictor, squares, [explain for _, explain in items])


def resolve_serving_engine(settings: ServingSettings) -> tuple[ServingSettings, str]:
    """The settings with an engine instead of 'auto', the same for every replica; and a line on it.

    On GPUs it is torch; else it is measured on this machine.

    Raises:
        UsageError: it could not be measured.
    """
    engine = "torch" if settings.engine == "auto" and settings.gpus_per_replica else settings.engine
    choice = resolve_engine(
        engine,
        settings.bundle,
        device=settings.device,
        precision=settings.precision,
        parallel=batches_at_once(settings),
    )
    return replace(settings, engine=choice.engine), choice.describe()


def make_predictor(settings: ServingSettings, parallel: int = 1) -> Predictor:
    """The one predictor, from the settings' bundle, for so many batches at a time.

    Raises:
        BundleError, UsageError: from `load_bundle` and `Predictor`.
    """
    chosen = PredictorOptions.of(settings, parallel=parallel)
    return Predictor(load_bundle(settings.bundle), chosen)


def describe_model(predictor: Predictor, location: str = "") -> ModelCard:
    """The card of a predictor, from the bundle at a folder or URI."""
    fields = predictor.bundle.fields
    own: dict[str, Any] = {
        "fingerprint": predictor.bundle.fingerprint,
        "cam_shape": predictor.cam_shape,
        "map_frame": predictor.bundle.map_frame,
        "cam_class": predictor.cam_class,
        "detects_out_of_domain": predictor.bundle.detector is not None,
        "recipe": str(fields.recipe.get("name", "unnamed")),
        "precision": predictor.precision,
        "engine": predictor.choice.engine,
        "device": str(predictor.device),
        "synthetic": bool(location) and on_phantoms(location),
    }
    # The card's other fields have the same names in the bundle's description.
    described = dict(fields) | dict(fields.architecture) | dict(fields.preprocessing) | own
    return ModelCard(**{name: described[name] for name in ModelCard.model_fields})


def on_phantoms(location: str) -> bool:
    """Whether the bundle at a folder or URI learned the project's synthetic scans.

    Its card tells; a bundle without a card is taken for one of real scans.
    """
    try:
        card = read_bytes(f"{location.rstrip('/')}/{CARD}")
    except (OSError, UsageError):
        return False
    return b"The images are synthetic phantoms" in card


def predict_rows(
    predictor: Predictor, squares: Sequence[GrayImage], explain: Sequence[MapChoice]
) -> list[Row]:
    """Predict a batch of which each member may want maps or not; one row each, in order.

    Maps are the network's own, for `placed`.
    """
    heads = head_weights(squares, predictor.cam_shape)
    columns = predictor.predict(squares, heads, explain=any(map(bool, explain)), placed=False)
    rows = [_row(columns, index, bool(wanted)) for index, wanted in enumerate(explain)]
    for index, name in enumerate(explain):
        if isinstance(name, str):  # rare: who chooses a class pays for a pass of their own
            one = slice(index, index + 1)
            own = predictor.explaining(name)
            rows[index] = _row(own.predict(squares[one], heads[one], placed=False), 0, True)
    return rows


def _row(columns: Columns, index: int, explain: bool) -> Row:
    # Maps and shares of heat belong to the explanation: who did not ask gets the same without.
    return {
        name: values[index]
        for name, values in columns.items()
        if explain or not (name.startswith("heat_") or getattr(values, "ndim", 1) > 2)
    }
