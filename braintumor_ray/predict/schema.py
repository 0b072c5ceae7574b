"""The columns of a prediction: the contract between scoring and every reader."""

import json
from collections.abc import Sequence

import pyarrow as pa

from braintumor_ray.types import PREDICTION_SET

SCHEMA_VERSION = 1

STATUSES = ("ok", "quarantined", "skipped")
KEYS = ("patient_key", "study_key", "series_key", "sop_key")

# Columns that came later, by name: bundles and folders of before have none of them.
OPTIONAL_FIELDS = {
    PREDICTION_SET: pa.list_(pa.string()),
    "domain_coordinates": pa.list_(pa.float32()),
}


def prediction_fields(cam_shape: tuple[int, int], methods: Sequence[str]) -> list[pa.Field]:
    """Fields that the predictor fills; null where the scan could not be predicted.

    Maps are lists of h * w float16 in row-major order; their shape is in the field's metadata
    (key `shape`, JSON) and in the results folder's results.json.
    """
    metadata = {"shape": json.dumps(list(cam_shape))}
    maps = [pa.field(name, pa.list_(pa.float16()), metadata=metadata) for name in methods]
    shares = [
        pa.field(f"heat_{region}", pa.float32()) for region in ("inside", "rim", "background")
    ]
    return [
        pa.field("predicted_class", pa.string()),
        pa.field("probabilities", pa.list_(pa.float32())),
        pa.field("decision", pa.bool_()),
        pa.field("entropy", pa.float32()),
        pa.field("out_of_domain", pa.bool_()),
        pa.field("cam_class", pa.string()),
        *maps,
        *shares,
    ]


def result_schema(
    cam_shape: tuple[int, int], methods: Sequence[str], optional: Sequence[str] = ()
) -> pa.Schema:
    """Schema of every Parquet file of predictions.

    Args:
        cam_shape: height and width of the maps.
        methods: CAM methods, a column each.
        optional: those of `OPTIONAL_FIELDS` that the bundle fills (`Bundle.optional_columns`); a
            folder has the same ones for good.
    """
    return pa.schema(
        [
            pa.field("scan_id", pa.int64(), nullable=False),
            pa.field("uri", pa.string()),
            pa.field("frame", pa.int32()),
            *(pa.field(key, pa.string()) for key in KEYS),
            pa.field("status", pa.string()),
            pa.field("reason", pa.string()),
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("pixel_sha256", pa.string()),
            *prediction_fields(cam_shape, methods),
            *(pa.field(name, OPTIONAL_FIELDS[name]) for name in optional),
            pa.field("bundle_fingerprint", pa.string()),
            pa.field("scored_at", pa.timestamp("us", tz="UTC")),
        ]
    )
