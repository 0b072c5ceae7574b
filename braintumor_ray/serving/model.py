"""What the front needs of a model: an interface, and the rows it returns.

Without torch, which costs each front two seconds and 200 MB: `serving.batched` predicts.
"""

import os
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from braintumor_ray.decode.head import WHOLE, Box
from braintumor_ray.decode.preprocess import Crop, Intensity, Preprocessing
from braintumor_ray.explain.placement import as_stored, picture_maps
from braintumor_ray.serving.settings import ServingSettings
from braintumor_ray.types import GrayImage

Row = dict[str, Any]
MapChoice = bool | str  # whether to make maps, or of which class in place of the predictor's choice


class ModelCard(BaseModel):
    """The bundle as /v1/model shows it; also what the front needs to decode and to decide."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    backbone: str
    head: str
    class_names: tuple[str, ...]
    positive_classes: tuple[str, ...]
    threshold: float
    temperature: float
    image_size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cam_layer: str
    cam_shape: tuple[int, ...]
    cam_class: str
    detects_out_of_domain: bool
    recipe: str
    data_fingerprint: str
    precision: str
    device: str
    engine: str = "torch"
    crop: Crop = "none"
    intensity: Intensity = "none"
    map_frame: tuple[float, ...] = WHOLE
    synthetic: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        """How pixels reach the network: the bundle's own, as in the archive job."""
        return Preprocessing(
            self.image_size,
            self.interpolation,
            self.mean,  # type: ignore[arg-type]
            self.std,  # type: ignore[arg-type]
            self.crop,
            self.intensity,
        )


class Model(Protocol):
    """Predicts squares; batches them behind this interface."""

    async def predict(self, square: GrayImage, explain: MapChoice) -> Row:
        """One row for one uint8 (S, S): the predictor's columns, without maps if not `explain`.

        Raises:
            ProblemError: 'busy' when its queue is full, 'not-ready' when no predictor answers.
        """
        ...

    def coming(self, count: int) -> AbstractContextManager[None]:
        """While it lasts, so many squares are on their way: what waits may wait for them."""
        ...

    async def card(self) -> ModelCard:
        """What the model is.

        Raises:
            ProblemError: as `predict`.
        """
        ...


def threads_of_replica(settings: ServingSettings) -> int:
    """Ray gives an actor one thread per CPU it asks for; predictors share the machine instead."""
    if settings.torch_threads:
        return settings.torch_threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // max(1, settings.replicas))


def batches_at_once(settings: ServingSettings) -> int:
    """Batches that share the threads of a replica: two on CPUs, so that no core waits."""
    return 2 if not settings.gpus_per_replica and threads_of_replica(settings) > 1 else 1


def placed(row: Row, box: Box, frame: Box) -> Row:
    """A row of a predictor whose maps are of the whole picture, see `explain.placement`."""
    return {
        name: as_stored(picture_maps(value[np.newaxis].astype(np.float32), [box], frame)[0])
        if np.ndim(value) == 2
        else value
        for name, value in row.items()
    }
