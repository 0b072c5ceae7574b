"""One door to timm and grad-cam, both of which import torchvision."""

from functools import cache
from importlib import import_module
from types import ModuleType

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
    return import_module("timm")


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
        import_module("torchvision")
    except RuntimeError as error:
        return error
    return None
