"""Hashes of a catalog's scans in this process, for splitting and auditing without Ray."""

from collections.abc import Callable

import pyarrow as pa

from braintumor_ray.data.decode import DecodeLimits
from braintumor_ray.data.prepare import HASHING_WORKER
from braintumor_ray.data.preprocess import Preprocessing
from braintumor_ray.data.reading import group_frames, prepare_scans
from braintumor_ray.data.sandbox import DecodeSandbox

# The square is not used here; the smallest costs least.
_THUMBNAIL = Preprocessing(32, "area", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def hash_scans(catalog: pa.Table, progress: Callable[[int, int], None] | None = None) -> pa.Table:
    """Decode every scan; columns scan_id, status, reason, pixel_sha256 and hashes.

    The hashes are those of `data.prepare.pack_hashes`, null where the status is not ok.
    """
    files = group_frames(catalog["uri"].to_pylist(), catalog["frame"].to_pylist())
    rows = []
    with DecodeSandbox(HASHING_WORKER) as sandbox:
        for scan in prepare_scans(files, sandbox, _THUMBNAIL, DecodeLimits()):
            rows.append((scan.status, scan.reason, scan.pixel_sha256, scan.hashes))
            if progress:
                progress(len(rows), catalog.num_rows)
    status, reason, digest, hashes = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pa.table(
        {
            "scan_id": catalog["scan_id"],
            "status": pa.array(status, pa.string()),
            "reason": pa.array(reason, pa.string()),
            "pixel_sha256": pa.array(digest, pa.string()),
            "hashes": pa.array(hashes, pa.binary()),
        }
    )
