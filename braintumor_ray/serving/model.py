"""What the front needs of a model: an interface, and the rows it returns."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from braintumor_ray.decode.head import WHOLE, Box
from braintumor_ray.decode.preprocess import Crop, Intensity, Preprocessing
from braintumor_ray.engines.choice import settled_engine
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.placement import picture_maps
from braintumor_ray.explain.regions import head_weights
from braintumor_ray.models.bundle import CARD
from braintumor_ray.predict.predictor import Columns, Predictor, as_stored
from braintumor_ray.serving.settings import ServingSettings
from braintumor_ray.storage import read_bytes
from braintumor_ray.types import GrayImage

Row = dict[str, Any]
Explain = bool | str  # whether to make maps, or of which class in place of the predictor's choice


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

    async def predict(self, square: GrayImage, explain: Explain) -> Row:
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


def settle_engine(settings: ServingSettings) -> tuple[ServingSettings, str]:
    """The settings with an engine instead of 'auto', the same for every replica; and a line on it.

    On GPUs it is torch; else it is measured on this machine.

    Raises:
        UsageError: it could not be measured.
    """
    engine = "torch" if settings.engine == "auto" and settings.gpus_per_replica else settings.engine
    choice = settled_engine(
        engine,
        settings.bundle,
        device=settings.device,
        precision=settings.precision,
        parallel=batches_at_once(settings),
    )
    return replace(settings, engine=choice.engine), choice.describe()


def threads_of_replica(settings: ServingSettings) -> int:
    """Ray gives an actor one thread per CPU it asks for; predictors share the machine instead."""
    if settings.torch_threads:
        return settings.torch_threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // max(1, settings.replicas))


def batches_at_once(settings: ServingSettings) -> int:
    """Batches that share the threads of a replica: two on CPUs, so that no core waits."""
    return 2 if not settings.gpus_per_replica and threads_of_replica(settings) > 1 else 1


def make_predictor(settings: ServingSettings, parallel: int = 1) -> Predictor:
    """The one predictor, from the settings' bundle, for so many batches at a time.

    Raises:
        BundleError, UsageError: from `Predictor.from_bundle`.
    """
    return Predictor.from_bundle(
        settings.bundle,
        settings.device,
        precision=settings.precision,
        cam_class=settings.cam_class,
        engine=settings.engine,
        parallel=parallel,
        tta=settings.tta,
    )


def describe_model(predictor: Predictor, location: str = "") -> ModelCard:
    """The card of a predictor, from the bundle at a folder or URI."""
    fields = predictor.bundle.fields
    own: dict[str, Any] = {
        "fingerprint": predictor.bundle.fingerprint,
        "cam_shape": predictor.cam_shape,
        "map_frame": predictor.bundle.map_frame,
        "cam_class": predictor.cam_class,
        "detects_out_of_domain": predictor.bundle.gate is not None,
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
    predictor: Predictor, squares: Sequence[GrayImage], explain: Sequence[Explain]
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


def placed(row: Row, box: Box, frame: Box) -> Row:
    """A row of `predict_rows` whose maps are of the whole picture, see `explain.placement`."""
    return {
        name: as_stored(picture_maps(value[np.newaxis].astype(np.float32), [box], frame)[0])
        if np.ndim(value) == 2
        else value
        for name, value in row.items()
    }


def _row(columns: Columns, index: int, explain: bool) -> Row:
    # Maps and shares of heat belong to the explanation: who did not ask gets the same without.
    return {
        name: values[index]
        for name, values in columns.items()
        if explain or not (name.startswith("heat_") or getattr(values, "ndim", 1) > 2)
    }
