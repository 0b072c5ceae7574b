"""The benchmark of training in tiny mode; those that start a Ray are in `tests/benchmarks`."""

import sys

import pytest

from benchmarks import train
from tests.benchmarks.test_benchmarks import some_scans, written_by
from tests.training.here import in_this_process


@pytest.mark.slow
@pytest.mark.ray
def test_train(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINTUMOR_DATA", some_scans(tmp_path, patients=24))
    monkeypatch.setattr(sys, "argv", ["train.py", "--tiny", "--output", str(tmp_path)])
    with in_this_process(tmp_path / "ray"):
        train.main()
    found = written_by("train", tmp_path)
    assert found["scans"] > 30
    assert all(rate["median"] > 0 for sides in found["rates"].values() for rate in sides.values())
