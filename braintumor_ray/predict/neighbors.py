"""The training scans that a scan is most like: written by `train`, searched by `review`.

RUN/features.parquet has, for each training scan, what the network sees in it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from braintumor_ray.decode.files import with_volumes
from braintumor_ray.storage import Folder

FEATURES = "features.parquet"
FEATURE_SCANS = 20_000  # a larger training set is sampled
NEIGHBORS = 6


def feature_table(
    scans: pa.Table, scan_ids: npt.NDArray[np.int64], pooled: npt.NDArray[np.float32]
) -> pa.Table:
    """A row per training scan.

    Args:
        scans: catalog rows of the training split, in any order.
        scan_ids: int64 (n,), those that were run through the network.
        pooled: float32 (n, C), the global average of the last feature map.

    Returns:
        `scan_id`, `uri`, `path`, `frame`, `class_name` and `features`, a fixed-size list of
        float16 (C).
    """
    known = scans["scan_id"].to_numpy()
    order = np.argsort(known)
    rows = scans.take(pa.array(order[np.searchsorted(known, scan_ids, sorter=order)]))
    limit = np.finfo(np.float16).max
    flat = pa.array(np.clip(pooled, -limit, limit).astype(np.float16).ravel())
    features = pa.FixedSizeListArray.from_arrays(flat, pooled.shape[1])
    kept = rows.select(["scan_id", "uri", "path", "frame", "class_name"])
    return kept.append_column("features", features)


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Features of training scans.

    Attributes:
        scans: `uri`, `path`, `frame`, `class_name` of each.
        directions: float32 (n, C), features of length 1.
    """

    scans: pa.Table
    directions: npt.NDArray[np.float32]

    def nearest(
        self, pooled: npt.NDArray[np.float32], count: int = NEIGHBORS
    ) -> list[dict[str, Any]]:
        """The training scans whose features point most nearly the same way.

        Args:
            pooled: float32 (C,).
            count: how many.

        Returns:
            `index`, `path`, `frame`, `class_name` and `similarity` (cosine), nearest first.
        """
        similarity = self.directions @ (pooled / max(float(np.linalg.norm(pooled)), 1e-12))
        chosen = np.argsort(-similarity, kind="stable")[:count]
        rows = self.scans.take(pa.array(chosen)).select(["path", "frame", "class_name"])
        return [
            {"index": int(index), "similarity": round(float(similarity[index]), 4), **row}
            for index, row in zip(chosen, rows.to_pylist(), strict=True)
        ]


def load_neighbors(run: str) -> Neighbors | None:
    """The features that a run has kept, None where it has kept none."""
    folder = Folder(run)
    if FEATURES not in folder.names():
        return None
    table = folder.read_table(FEATURES)
    flat = table["features"].combine_chunks().flatten().to_numpy()
    features = flat.reshape(table.num_rows, -1).astype(np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    scans = with_volumes(table.drop_columns(["features"]))
    return Neighbors(scans, features / np.maximum(length, 1e-12))
