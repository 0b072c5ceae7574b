"""The benchmark of training in tiny mode; those that start a Ray are in `tests/benchmarks`."""

import pytest
import ray

from tests.benchmarks.test_benchmarks import tiny


@pytest.mark.slow
@pytest.mark.ray
def test_train(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    found = tiny("train", tmp_path, patients=24)
    assert found["scans"] > 30
    assert all(rate["median"] > 0 for sides in found["rates"].values() for rate in sides.values())
