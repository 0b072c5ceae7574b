"""One door to timm and grad-cam, both of which import torchvision."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from braintumor_ray.errors import WeightsError

# For detection; no network here uses them. torchvision registers shape functions for them as it is
# imported, whether or not its compiled extension has declared them.
_OPERATORS = ("nms", "qnms")


def import_timm() -> ModuleType:
    """Import timm, whatever build of torchvision is installed.

    Raises:
        WeightsError: torchvision cannot be imported.
    """
    _import_torchvision()
    return _imported("timm")


def import_grad_cam() -> ModuleType:
    """Import pytorch_grad_cam; see `import_timm`."""
    _import_torchvision()
    return import_module("pytorch_grad_cam")


@cache
def _import_torchvision() -> None:
    """Import torchvision, also where its compiled extension does not fit this build of torch.

    Its default wheel is built for CUDA. With a CPU build of torch the extension cannot be loaded,
    and the import fails with "operator torchvision::nms does not exist". Declared here, the
    operators exist and still cannot be run.
    """
    import torch

    if _failed_import() is None:
        return
    for operator in _OPERATORS:
        torch.library.define(f"torchvision::{operator}", "(Tensor x) -> Tensor")
    error = _failed_import()
    if error is not None:
        raise WeightsError(
            f"torchvision does not fit torch {torch.__version__} ({error}); install both from one "
            "index, in releases that belong together"
        ) from error


def _failed_import() -> RuntimeError | None:
    try:
        _imported("torchvision")
    except RuntimeError as error:
        return error
    return None


def _imported(name: str) -> ModuleType:
    try:
        with _without_compiler():
            return import_module(name)
    except (ImportError, AttributeError):  # a release that asks for more of the compiler
        return import_module(name)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Spare the import of torch's compiler, half of all that timm imports.

    Both libraries want of it what concerns functions that no network here uses: whether detection
    may be compiled, and that a part of NaFlexViT never is.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    compiler: Any = ModuleType(name)
    compiler.disable = _as_it_is
    compiler.utils = ModuleType(f"{name}.utils")
    compiler.utils.is_compile_supported = lambda device_type: False
    sys.modules |= {name: compiler, f"{name}.utils": compiler.utils}
    try:
        yield
    finally:
        del sys.modules[name], sys.modules[f"{name}.utils"]


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:  # noqa: ANN401 - a decorator
    return function or _as_it_is
