"""Fixtures of the metrics' tests."""

from importlib import import_module
from types import ModuleType

import pytest

from braintumor_ray.models.vision_libraries import import_timm


@pytest.fixture(scope="session")
def torchmetrics_functional() -> ModuleType:
    """torchmetrics' classification functions, the second oracle beside scikit-learn."""
    # torchmetrics imports torchvision too, so it goes through the same door as timm.
    import_timm()
    return import_module("torchmetrics.functional.classification")
