"""Options of `braintumor-ray export`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from braintumor_ray.options import Option

Format = Literal["onnx", "openvino"]


@dataclass(frozen=True)
class ExportOptions:
    """What is written.

    Attributes:
        format: 'onnx' (FILE.onnx) or 'openvino' (FILE.xml, and FILE.bin with the weights).
        all_classes: whether the maps of every class are outputs, too.
    """

    format: Annotated[Format, Option("FILE.onnx, or FILE.xml with FILE.bin.")] = "onnx"
    all_classes: Annotated[bool, Option("Maps of every class, not only of the predicted.")] = False
