"""The figures of a phase and their intervals are of the same decision."""

from types import SimpleNamespace

import numpy as np
import pytest

from braintumor_ray.models.classifier import Architecture
from braintumor_ray.training.finish import Outputs
from braintumor_ray.training.phases import _intervals, _row
from tests.builders import make_fields


def outputs(k: int) -> Outputs:
    """Random outputs of 200 scans that lean towards the truth."""
    rng = np.random.default_rng(0)
    labels = rng.integers(k, size=200)
    logits = (rng.normal(size=(200, k)) + 1.5 * np.eye(k)[labels]).astype(np.float32)
    return Outputs(np.arange(200), logits, np.zeros((200, 1), np.float32), labels)


@pytest.mark.parametrize("classes", [("glioma", "no_tumor"), ("glioma", "other", "no_tumor")])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_accuracy_is_its_intervals_estimate(classes, threshold):
    architecture = Architecture("small-cnn", "linear", len(classes), 64)
    fields = make_fields(architecture, classes=classes, threshold=threshold)
    positive = range(len(classes) - 1)
    bundle = SimpleNamespace(fields=fields, positive_indices=positive)
    found = outputs(len(classes))
    row = _row("tuned", found, bundle, threshold)
    interval = _intervals(found, bundle, np.arange(200))["accuracy"]
    assert row["accuracy"] == pytest.approx(interval["estimate"])
    assert interval["low"] < row["accuracy"] < interval["high"]
