"""Catalogs that no longer tell where a scan is, for results that leave the house."""

import pyarrow as pa

from braintumor_ray.data.catalog import CATALOG_SCHEMA
from braintumor_ray.data.identity import REDACTED, UriRedaction
from braintumor_ray.data.listing import label_of


def redact_catalog(catalog: pa.Table, redaction: UriRedaction | None) -> pa.Table:
    """The catalog with a keyed hash for path and URI; as it is where there is no redaction.

    Further columns of a table are left out, and so are labels that are the name of a folder: both
    may repeat the path. Rows that are redacted already stay as they are.
    """
    if redaction is None:
        return catalog
    paths = catalog["path"].to_pylist()
    hidden = [path if path.startswith(REDACTED) else redaction(path) for path in paths]
    labels = [
        None if label == label_of(path) else label
        for label, path in zip(catalog["label"].to_pylist(), paths, strict=True)
    ]
    kept = catalog.select([name for name in CATALOG_SCHEMA.names if name in catalog.column_names])
    for name, values in (("uri", hidden), ("path", hidden), ("label", labels)):
        kept = kept.set_column(kept.column_names.index(name), name, pa.array(values, pa.string()))
    return kept
