"""Catalogs without locations of scans, for results that leave the institution."""

from dataclasses import dataclass

import pyarrow as pa

from braintumor_ray.catalog.folders import folders_of
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.schema import CATALOG_SCHEMA
from braintumor_ray.errors import UsageError
from braintumor_ray.hash_key import KEY_VARIABLE

REDACTED = "redacted:"  # begins what replaces a path or URI


@dataclass(frozen=True)
class UriRedaction:
    """Replaces everything that shows where a scan is by a keyed hash of the relative path.

    Attributes:
        secret: the key of the HMAC; another key makes another hash of the same file.
    """

    secret: bytes

    def __call__(self, path: str) -> str:
        """The hash of a path below the archive's root."""
        return f"{REDACTED}{IdentityHash(self.secret)(path, 'uri')}"

    @property
    def check(self) -> str:
        """Distinguishes two keys without revealing either."""
        return IdentityHash(self.secret).check


def uri_redaction(identity: IdentityHash) -> UriRedaction:
    """The redaction with the same key as the ids'.

    Raises:
        UsageError: there is no key.
    """
    secret = identity.key
    if secret is None:
        raise UsageError(
            f"--redact-uri needs a key for its hashes; set {KEY_VARIABLE} or give --hash-key-file"
        )
    return UriRedaction(secret)


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
        None if label in folders_of(path) else label
        for label, path in zip(catalog["label"].to_pylist(), paths, strict=True)
    ]
    kept = catalog.select([name for name in CATALOG_SCHEMA.names if name in catalog.column_names])
    for name, values in (("uri", hidden), ("path", hidden), ("label", labels)):
        kept = kept.set_column(kept.column_names.index(name), name, pa.array(values, pa.string()))
    return kept.replace_schema_metadata(None)  # it may name archives
