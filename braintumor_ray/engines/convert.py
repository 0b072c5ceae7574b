"""A module as an ONNX model or as one of OpenVINO."""

import io
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from braintumor_ray.extras import require

INPUT = "images"
OPSET = 17  # ONNX Runtime reads it since 2022


def to_onnx(module: nn.Module, size: int, outputs: tuple[str, ...]) -> bytes:
    """An ONNX model of a module that takes uint8 (n, size, size), n free.

    Args:
        module: in eval mode, on CPU.
        size: side of the input.
        outputs: names of what it returns.

    Raises:
        UsageError: onnx is not installed.
    """
    require("onnx")
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: shapes that are fixed here are meant to be
        torch.onnx.export(
            module,
            (_example(size),),
            buffer,  # type: ignore[arg-type]  # the tracing exporter writes to it
            dynamo=False,  # the other exporter needs onnxscript, and gives the same graph
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_axes={name: {0: "n"} for name in (INPUT, *outputs)},
        )
    return buffer.getvalue()


def to_openvino(module: nn.Module, size: int, outputs: tuple[str, ...]) -> Any:  # noqa: ANN401
    """As `to_onnx`, an `openvino.Model`.

    `openvino.convert_model` takes torch modules, too, but reports its use to its makers.

    Raises:
        UsageError: OpenVINO or onnx is not installed.
    """
    return openvino_core().read_model(to_onnx(module, size, outputs))


def openvino_core() -> Any:  # noqa: ANN401
    """The `openvino.Core` of this process; it stays until the end.

    Its CPU plugin gives the thread that loads it a stack for signal handlers, and takes the memory
    away with itself. Of two that end in the order in which they began, or in another thread, the
    second leaves that thread a stack without memory: the next signal that Python handles, such as
    Ctrl-C, is then a segmentation fault.

    Raises:
        UsageError: OpenVINO is not installed.
    """
    return _core_of(require("openvino"))


@cache
def _core_of(openvino: ModuleType) -> Any:  # noqa: ANN401
    return openvino.Core()


def _example(size: int) -> Tensor:
    """Two pictures, not one: a batch of one may be traced as if it were always one."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, size, size), dtype=torch.uint8, generator=generator)
