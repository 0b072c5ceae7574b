"""Starting Ray for a command: on the cluster that is there, or on this machine alone."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from braintumor_ray.errors import UsageError

SPARE_CPUS = 2  # logical, for reading and data, next to the workers
LEAST_CPUS = 4  # with fewer the archive job's stages wait for each other for ever

_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # remarks of Ray's core; its errors reach us as exceptions
    "RAY_worker_maximum_startup_concurrency": "{cpus}",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # CPU tasks may still see the GPUs
    "RAY_TRAIN_V2_ENABLED": "1",
}


@contextmanager
def ray_session(workers: int = 2) -> Iterator[None]:
    """A Ray connection, closed at the end if it was opened here.

    What Ray prints meanwhile goes to stderr: stdout is for results.

    With `RAY_ADDRESS` set, that cluster; else a local one with enough logical CPUs: more than the
    machine has is fine, as stages wait for each other most of the time.

    Raises:
        UsageError: the cluster at RAY_ADDRESS does not answer.
    """
    cpus = max(os.cpu_count() or 1, LEAST_CPUS, workers + SPARE_CPUS)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value.format(cpus=cpus))
    _let_arrow_give_memory_back()
    import logging

    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        where = {"address": address} if address else {"num_cpus": cpus, "include_dashboard": False}
        with _stderr_held():
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise UsageError(
            f"RAY_ADDRESS '{address}': no cluster answers ({error}); unset it to run here alone"
        ) from error
    with redirect_stdout(sys.stderr):
        try:
            yield
        except KeyboardInterrupt:
            with _stderr_held():  # what dying workers and threads have to say helps nobody
                ray.shutdown()
            raise
        finally:
            ray.shutdown()  # prints what is left, too


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


def _let_arrow_give_memory_back() -> None:
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
def _stderr_held() -> Iterator[None]:
    """Keep what Ray's core writes meanwhile; shown only if that fails."""
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(saved, kept.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
