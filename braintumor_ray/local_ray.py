"""Starting Ray for a command: on the cluster that is there, or on this machine alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from braintumor_ray.errors import UsageError

SPARE_CPUS = 2  # logical, for reading and data beside the workers
LEAST_CPUS = 4  # with fewer the archive job's stages wait for each other for ever


@contextmanager
def ray_session(workers: int = 2) -> Iterator[None]:
    """A Ray connection, closed at the end if it was opened here.

    With `RAY_ADDRESS` set, that cluster; else a local one with enough logical CPUs: more than the
    machine has is fine, as stages wait for each other most of the time.

    Raises:
        UsageError: the cluster at RAY_ADDRESS does not answer.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import logging

    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=max(os.cpu_count() or 1, LEAST_CPUS, workers + SPARE_CPUS),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except ConnectionError as error:
        raise UsageError(
            f"RAY_ADDRESS '{address}': no cluster answers ({error}); unset it to run here alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
