"""How a job lays itself out on a cluster: pure arithmetic, so that it can be tested and printed."""

import math
from dataclasses import dataclass

from braintumor_ray.errors import UsageError
from braintumor_ray.models.allocator import allocator_environment
from braintumor_ray.scoring.options import Range, Request

# Read, checkpoint filter or write, a decoder and a predictor at the same time: with fewer they wait
# for each other for ever.
LEAST_CPUS = 4
SPARE_CPUS = 2  # logical, for reading, filtering and writing, which need little


@dataclass(frozen=True)
class Cluster:
    """What a cluster has.

    Attributes:
        cpus, gpus: logical, of all nodes.
        nodes: that are alive and have CPUs.
        cores: of one machine, for torch threads.
    """

    cpus: float
    gpus: float = 0.0
    nodes: int = 1
    cores: int = 1


@dataclass(frozen=True)
class JobResources:
    """What the job asks Ray for.

    Attributes:
        predictors, decoders: (least, most) actors.
        cpus_per_predictor, gpus_per_predictor: logical, each.
        cpus_per_decode: logical, each.
        torch_threads: of each predictor on CPU; None on GPU (torch's default).
    """

    predictors: Range
    decoders: Range
    cpus_per_predictor: float
    gpus_per_predictor: float
    cpus_per_decode: float
    torch_threads: int | None

    def runtime_env(self) -> dict[str, dict[str, str]]:
        """In what environment Ray starts the predictors."""
        return {} if self.gpus_per_predictor else {"env_vars": allocator_environment()}


def allocate(request: Request, cluster: Cluster) -> JobResources:
    """Give predictors their GPUs (or a node each), and decoders all other CPUs.

    Raises:
        UsageError: too few CPUs or GPUs in the cluster; the job would hang.
    """
    predictors = request.predictors or _default_predictors(request, cluster)
    least, most = predictors
    need = max(LEAST_CPUS, math.ceil(least + request.cpus_per_decode + SPARE_CPUS))
    if cluster.cpus < need:
        raise UsageError(
            f"the cluster has {cluster.cpus:g} CPUs and the job needs {need} (read, filter, "
            f"decode, and {least} predictors); start Ray with --num-cpus {need} (more than the "
            "machine has is allowed) or add nodes"
        )
    share = request.gpus_per_predictor or 0.0
    if cluster.gpus < share * least:
        raise UsageError(
            f"the cluster has {cluster.gpus:g} GPUs and {least} predictors need "
            f"{share * least:g}; use --device cpu or add GPU nodes"
        )
    room = (cluster.cpus - most - SPARE_CPUS) / request.cpus_per_decode
    threads = None
    if not share:
        threads = max(1, cluster.cores // math.ceil(most / cluster.nodes))
    return JobResources(
        predictors=predictors,
        decoders=request.decoders or (1, max(1, int(room))),
        cpus_per_predictor=1.0,
        gpus_per_predictor=share,
        cpus_per_decode=request.cpus_per_decode,
        torch_threads=threads,
    )


def _default_predictors(request: Request, cluster: Cluster) -> Range:
    """One, and as many more as there are GPUs (shares of them), or nodes without a GPU."""
    if request.gpus_per_predictor:
        return 1, max(1, int(cluster.gpus / request.gpus_per_predictor + 1e-9))
    return 1, max(1, cluster.nodes)
