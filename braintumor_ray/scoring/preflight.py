"""Before a job starts: does the cluster have what the job must have? Otherwise it would hang."""

import os
from dataclasses import dataclass

import ray

from braintumor_ray.errors import UsageError

LEAST_CPUS = 4  # read, checkpoint filter or write, a decoder and a predictor at the same time


@dataclass(frozen=True)
class Resources:
    """How a job lays itself out on a cluster.

    Attributes:
        cpus_per_predictor: logical CPUs that each predictor actor takes.
        torch_threads: threads of each predictor on CPU; None on GPU (torch's default).
        decoders: (least, most) decoder actors.
    """

    cpus_per_predictor: float
    torch_threads: int | None
    decoders: tuple[int, int]


def check_cluster(gpus_per_predictor: float, num_predictors: tuple[int, int]) -> Resources:
    """Lay the job out, or say what is missing.

    Raises:
        UsageError: too few CPUs or GPUs in the cluster.
    """
    have = ray.cluster_resources()
    cpus = int(have.get("CPU", 0))
    least, most = num_predictors
    need = max(LEAST_CPUS, least + 3)
    if cpus < need:
        raise UsageError(
            f"the cluster has {cpus} CPUs and the job needs {need} (read, filter, decode, and "
            f"{least} predictors); start Ray with --num-cpus {need} (more than the machine has is "
            "allowed) or add nodes"
        )
    gpus = float(have.get("GPU", 0))
    if gpus < gpus_per_predictor * least:
        raise UsageError(
            f"the cluster has {gpus:g} GPUs and {least} predictors need "
            f"{gpus_per_predictor * least:g}; use --device cpu or add GPU nodes"
        )
    decoders = (1, max(1, cpus - most - 2))
    if gpus_per_predictor:
        return Resources(1, None, decoders)
    physical = os.cpu_count() or 1
    return Resources(1, max(1, physical // most), decoders)
