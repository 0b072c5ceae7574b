"""Options of `braintumor-ray neurons`."""

from dataclasses import dataclass
from typing import Annotated

from braintumor_ray.options import Device, Option


@dataclass(frozen=True)
class NeuronOptions:
    """How neurons are recorded and shown.

    Attributes:
        device: as for `Predictor`.
        batch_size: scans per forward pass; None: the predictor's choice.
        top: neurons shown per class.
        examples: scans shown per neuron, pixel-identical ones once.
        limit: at most so many labeled scans, drawn with `seed`; None: all.
        seed: of that draw.
    """

    limit: Annotated[int | None, Option("At most so many labeled scans.", least=1)] = None
    top: Annotated[int, Option("Neurons shown per class.", least=1)] = 6
    device: Device = "auto"
    batch_size: int | None = None
    examples: int = 6
    seed: int = 0
