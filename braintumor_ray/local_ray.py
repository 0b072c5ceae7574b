"""Starting Ray for a command: on the cluster that is there, or on this machine alone."""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from braintumor_ray.errors import StartError, UsageError
from braintumor_ray.monitoring.logs import are_json, worker_environment
from braintumor_ray.scoring.layout import LEAST_CPUS, SPARE_CPUS

_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # remarks of Ray's core; its errors reach us as exceptions
    "RAY_worker_maximum_startup_concurrency": "{cpus}",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # CPU tasks may still see the GPUs
    "RAY_TRAIN_V2_ENABLED": "1",
}
# Notes of each task, for a dashboard that does not run here.
_QUIET = {"task_events_report_interval_ms": 0}
# On this machine alone: no node can be taken away, and each watcher is a process.
_ENVIRONMENT_ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


@contextmanager
def ray_session(workers: int = 2, metrics_port: int | None = None) -> Iterator[None]:
    """A Ray connection, closed at the end if it was opened here.

    What Ray prints meanwhile goes to stderr: stdout is for results.

    With `RAY_ADDRESS` set, that cluster; else a local one with enough logical CPUs: more than the
    machine has is fine, as stages wait for each other most of the time.

    Args:
        workers: processes that need a CPU each.
        metrics_port: where a local Ray exports Prometheus metrics; None: nowhere.

    Raises:
        UsageError: the cluster at RAY_ADDRESS does not answer, or the port is not free.
        StartError: a local Ray does not start in time.
    """
    cpus = max(os.cpu_count() or 1, LEAST_CPUS, workers + SPARE_CPUS)
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (_ENVIRONMENT if address else _ENVIRONMENT | _ENVIRONMENT_ALONE).items():
        os.environ.setdefault(name, value.format(cpus=cpus))
    _return_arrow_memory()
    import logging

    import ray

    if ray.is_initialized():
        yield
        return
    where = _where(address, cpus, metrics_port) | _logs()
    try:
        with _stderr_suppressed():
            ray.init(**where, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise UsageError(
            f"RAY_ADDRESS '{address}': no cluster answers ({error}); unset it to run here alone"
        ) from error
    except Exception as error:  # Ray has no class of its own for it
        if "timed out during startup" not in str(error):
            raise
        raise StartError(
            "Ray did not start on this machine in time; it is overloaded, or short of memory: try "
            "again when less runs on it"
        ) from error
    with redirect_stdout(sys.stderr):
        try:
            yield
        except KeyboardInterrupt:
            with _stderr_suppressed():  # messages of dying workers and threads help nobody
                _shut_down()
            raise
        finally:
            _shut_down()  # prints what is left, too


def _shut_down() -> None:
    """End Ray and, where it ran here alone, all of its workers.

    One whose last message is still on its way locks itself up in its exit (Ray 2.60: the end of the
    queue ends the publisher, which writes to the queue), and would stay with all its memory.
    """
    import psutil
    import ray

    raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
    workers = [worker for raylet in raylets for worker in raylet.children(recursive=True)]
    ray.shutdown()
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


def _where(address: str | None, cpus: int, metrics_port: int | None) -> dict[str, Any]:
    """What `ray.init` needs to know of the place.

    Metrics at a port that nobody knows are not collected: their processes cost CPU all the time.
    """
    if address:
        if metrics_port:
            raise UsageError(
                f"--metrics-port {metrics_port}: the cluster at RAY_ADDRESS '{address}' has "
                "ports of its own; leave it out"
            )
        return {"address": address}
    if metrics_port:
        _check_free(metrics_port)
    place = {"num_cpus": cpus, "include_dashboard": False, "_metrics_export_port": metrics_port}
    return place | {"_system_config": _QUIET | {"enable_metrics_collection": bool(metrics_port)}}


def _check_free(port: int) -> None:
    """Ray itself would go on without metrics."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UsageError(
                f"--metrics-port {port}: cannot listen there ({error.strerror}); choose another"
            ) from error


def _logs() -> dict[str, Any]:
    """Lines of workers reach this process only as records, with --log-json."""
    if not are_json():
        return {"log_to_driver": False}
    return {"log_to_driver": True, "runtime_env": worker_environment()}


def wants_gpu(wanted: bool | None) -> bool:
    """Whether to use GPUs: as wanted, else where the cluster has any.

    Raises:
        UsageError: wanted, and there is none.
    """
    import ray

    have = ray.cluster_resources().get("GPU", 0) > 0
    if wanted and not have:
        raise UsageError("--gpu: the cluster has no GPU; leave it out to train on CPUs")
    return have if wanted is None else wanted


def _return_arrow_memory() -> None:
    """Arrow's default, mimalloc, keeps what was freed: memory would grow with the archive."""
    import pyarrow as pa

    if (
        "ARROW_DEFAULT_MEMORY_POOL" in os.environ
        or "jemalloc" not in pa.supported_memory_backends()
    ):
        return
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "jemalloc"  # of local Ray's workers
    pa.set_memory_pool(pa.jemalloc_memory_pool())


@contextmanager
def _stderr_suppressed() -> Iterator[None]:
    """Keep what Ray's core writes meanwhile; shown only if that fails."""
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            if failed:
                kept.seek(0)
                sys.stderr.write(kept.read().decode("utf-8", "replace"))
