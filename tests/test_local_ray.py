"""In what environment a command starts Ray, and what is left when it ends."""

import os
import subprocess
import sys

import psutil
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


WORKER_THAT_STAYS = """
import time
import ray
from braintumor_ray.local_ray import ray_session

@ray.remote(num_cpus=0)
class Stays:
    def pid(self):
        import atexit, os, time
        atexit.register(time.sleep, 600)
        return os.getpid()

with ray_session():
    actor = Stays.remote()
    print(ray.get(actor.pid.remote()), flush=True, file=open({target!r}, "w"))
    del actor  # it ends now, and Ray forgets it
    time.sleep(2)
"""


def test_no_worker_outlives_the_command(tmp_path):
    """Some of Ray's lock themselves up in their exit; this one only sleeps there."""
    target = tmp_path / "pid"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    code = WORKER_THAT_STAYS.format(target=str(target))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    pid = int(target.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
