"""What an audit looks for in addition to copies."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from braintumor_ray.options import Option


@dataclass(frozen=True)
class LabelOptions:
    """How suspect labels are found.

    Attributes:
        labels: look for them; needs the extra `labels`.
        folds: output folder of `train --folds`, whose networks predict the scans that they were
            not trained on; None: a classifier on features of a pretrained network.
        weights: of that network, as for `train`.
    """

    PANEL: ClassVar = "Labels"

    labels: Annotated[bool, Option("Rank labels that cross-validated predictions contradict.")] = (
        False
    )
    folds: Annotated[
        str | None,
        Option("Predictions of 'train --folds N --output RUN', not of a quick classifier.", "RUN"),
    ] = None
    weights: Annotated[
        str, Option("Of the quick classifier's network.", "imagenet|none|FILE.safetensors")
    ] = "imagenet"
