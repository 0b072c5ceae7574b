"""Values that an option may have, each named once; imports nothing, as `--help` reads it."""

from typing import Literal

EngineName = Literal["torch", "openvino", "onnxruntime"]
"""What runs a network."""
EngineChoice = Literal["auto", "torch", "openvino", "onnxruntime"]
"""As an option: auto is the fastest measured on this machine."""
Precision = Literal["auto", "fp32", "bf16"]
"""Numbers of a network: auto is bf16 where the hardware gains."""
CamClass = Literal["predicted", "positive"]
"""Whose map: the predicted class, or the likeliest positive one."""
Plane = Literal["axial", "coronal", "sagittal"]
"""How a volume is cut into frames."""
