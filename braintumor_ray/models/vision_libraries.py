"""One door to timm and grad-cam, both of which import torchvision."""

import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


def import_timm() -> ModuleType:
    """Import timm, see `_make_torchvision_importable`."""
    _make_torchvision_importable()
    return import_module("timm")


def import_grad_cam() -> ModuleType:
    """Import pytorch_grad_cam, see `_make_torchvision_importable`."""
    _make_torchvision_importable()
    return import_module("pytorch_grad_cam")


@cache
def _make_torchvision_importable() -> None:
    """Declare torchvision's operators where its compiled extension does not fit torch's build.

    torchvision's default wheel is built for CUDA; beside a CPU build of torch its extension cannot
    be loaded, and importing it fails with "operator torchvision::nms does not exist", because it
    registers shape functions for operators that nobody declared. We use none of these operators
    (they are for detection); declaring them lets timm and grad-cam be imported.
    """
    import torch

    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent
    if _extension_loads(folder):
        return
    source = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
    for operator in re.findall(r'register_fake\("torchvision::(\w+)"\)', source):
        torch.library.define(f"torchvision::{operator}", "(Tensor x) -> Tensor")


def _extension_loads(folder: Path) -> bool:
    import torch

    libraries = [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)
