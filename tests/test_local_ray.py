"""In what environment a command starts Ray; Ray itself is not started."""

import os

import pytest
import ray

from braintumor_ray.local_ray import ray_session

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


@pytest.fixture
def environment(monkeypatch):
    own = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", WATCHER)}
    monkeypatch.setattr(os, "environ", own)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return own


def test_only_nodes_of_a_cluster_are_watched(environment):
    with ray_session():
        assert environment.pop(WATCHER) == "0"
    environment["RAY_ADDRESS"] = "192.0.2.1:6379"
    with ray_session():
        assert WATCHER not in environment
