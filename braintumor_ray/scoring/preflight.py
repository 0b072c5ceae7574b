"""Before a job starts: does the cluster have what the job must have? Otherwise it would hang."""

import os

import ray

from braintumor_ray.scoring.layout import Cluster, Layout, Request, lay_out


def check_cluster(request: Request) -> Layout:
    """Lay the job out on the cluster that we are connected to.

    Raises:
        UsageError: too few CPUs or GPUs in the cluster.
    """
    return lay_out(request, connected_cluster())


def connected_cluster() -> Cluster:
    """What the cluster has."""
    have = ray.cluster_resources()
    alive = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]
    return Cluster(
        cpus=float(have.get("CPU", 0)),
        gpus=float(have.get("GPU", 0)),
        nodes=max(1, len(alive)),
        cores=os.cpu_count() or 1,
    )
