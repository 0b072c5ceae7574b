"""The reading part of an audit on Ray Data, for data sets that one machine reads too slowly."""

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from braintumor_ray.audit.fingerprints import FingerprintStage
from braintumor_ray.parquet_dataset import configure_ray_data

SCANS_PER_BLOCK = 512


def fingerprint_on_cluster(catalog: pa.Table, text: bool = True) -> pa.Table:
    """Fingerprint every scan of a catalog on all of the cluster's CPUs.

    Args:
        catalog: as `catalog.build.load_catalog` gives it.
        text: look for burned-in text.

    Returns:
        The catalog with the columns of `fingerprints.FINGERPRINT_SCHEMA`, in the catalog's order;
        `audit.run_audit` takes it without reading the files again.
    """
    configure_ray_data()
    most = max(1, int(ray.cluster_resources().get("CPU", 2)) - 1)
    blocks = [
        catalog.slice(start, SCANS_PER_BLOCK)
        for start in range(0, catalog.num_rows, SCANS_PER_BLOCK)
    ]
    data = ray.data.from_arrow(blocks).map_batches(
        FingerprintStage,
        fn_constructor_kwargs={"text": text},
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=1,
        compute=ActorPoolStrategy(min_size=1, max_size=most),
    )
    parts = list(data.iter_batches(batch_format="pyarrow", batch_size=None))
    found = pa.concat_tables(parts, promote_options="default")
    return found.sort_by([("path", "ascending"), ("frame", "ascending")])
