"""How a network is run, for every command and every user of the predictor."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypedDict, TypeVar

from braintumor_ray.choices import CamClass, EngineChoice, Precision
from braintumor_ray.explain.cam import SCORED_METHODS

F = TypeVar("F", bound=Callable[..., Any])


class NetworkKeywords(TypedDict, total=False):
    """The fields of `PredictorOptions` but the device as keywords, for type checkers."""

    precision: Precision
    engine: EngineChoice
    cam_class: CamClass
    methods: tuple[str, ...]
    batch_size: int | None
    parallel: int
    tta: bool


class PredictorKeywords(NetworkKeywords, total=False):
    """All of them."""

    device: str


@dataclass(frozen=True, kw_only=True)
class PredictorOptions:
    """How a predictor runs its network and what it explains.

    Attributes:
        device: 'auto' (CUDA where there is one), 'cpu' or 'cuda[:n]'.
        precision: 'auto' (bf16 where the hardware gains), 'fp32' or 'bf16'; the head and the maps
            are always computed in float32.
        engine: what runs the backbone: 'torch', or 'openvino' or 'onnxruntime' on CPUs (the extras
            `openvino` and `onnx`); 'auto' measures those that are installed, for some seconds.
        cam_class: whose map: the predicted class, or the likeliest positive class.
        methods: CAM methods, keys of `explain.cam.METHODS`.
        batch_size: images per forward pass; None: 16 on CPU, whose caches larger ones leave, 256 on
            CUDA.
        parallel: calls that will run at the same time, each on its share of the threads of an
            engine other than torch.
        tta: average logits over `predict.views.test_time_views`; threshold and temperature are
            those that were chosen so, and maps are of the scan as it is.
    """

    device: str = "auto"
    precision: Precision = "auto"
    engine: EngineChoice = "torch"
    cam_class: CamClass = "predicted"
    methods: tuple[str, ...] = SCORED_METHODS
    batch_size: int | None = None
    parallel: int = 1
    tta: bool = False

    @classmethod
    def of(cls, chosen: object, **others: Any) -> "PredictorOptions":  # noqa: ANN401 - any field
        """The options that a command's own options hold under the same names.

        Args:
            chosen: options of a command; what it does not offer has its default.
            others: fields that go by another name there.
        """
        names = [field.name for field in fields(cls) if hasattr(chosen, field.name)]
        return cls(**({name: getattr(chosen, name) for name in names} | others))


def takes_options(function: F) -> F:
    """Show the fields of `PredictorOptions` in a signature in place of its `**options`."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD]
    declared = inspect.signature(PredictorOptions).parameters.values()
    named = {parameter.name for parameter in own}
    every = [*own, *(parameter for parameter in declared if parameter.name not in named)]
    function.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    return function
