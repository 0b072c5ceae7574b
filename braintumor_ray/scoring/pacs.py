"""A DICOMweb source night by night: only new objects are asked for, a killed listing goes on.

    RESULTS/listing/SOURCE/*.parquet    catalog rows that are made, until they are committed

SOURCE is a keyed digest of the source and its query. The rows hold hashes and tokens, no ids.
"""

import hmac
import secrets
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.build import catalog_parts
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.pacs import PacsListing
from braintumor_ray.catalog.schema import CATALOG_SCHEMA
from braintumor_ray.dicomweb.query import parse_query
from braintumor_ray.predict.results import ResultsFolder, results_folder
from braintumor_ray.scoring.plan import earlier_scans, quarantined_ids
from braintumor_ray.scoring.scans import Ids, Scans, joined, scans_in_files, scans_in_table
from braintumor_ray.storage import open_filesystem, write_table
from braintumor_ray.types import Progress

LISTING = "listing"


def open_pacs(
    source: str,
    results: str,
    options: CatalogOptions,
    *,
    retry_quarantined: bool = False,
    progress: Progress | None = None,
) -> Scans:
    """The scans of a DICOMweb source that a results folder does not have.

    Rows are written to the folder as they are made, and read from there: memory does not grow with
    the source. `drop_listing` removes them.

    Raises:
        ServerError: the server is down, refuses access, or is none; what is listed is kept.
        CatalogError: no image matches, and the folder has none yet.
        UsageError: the source is not written as one.
    """
    folder = results_folder(results)
    committed = _committed(folder, retry_quarantined)
    found = PacsListing(source, options.identity, progress, known=committed)
    digest = hmac.digest(found.key or b"", source.encode(), "sha256").hex()[:16]
    names = [name for name in folder.names(LISTING, digest) if name.endswith(".parquet")]
    made = joined(_first_frames(folder, digest, name) for name in names)
    found.known = np.union1d(committed, made)
    for part in catalog_parts(found, options):
        names.append(f"{secrets.token_hex(8)}.parquet")  # another process may list the same
        write_table(folder.at(LISTING, digest, names[-1]), part.replace_schema_metadata(None))
    return replace(
        _scans(folder, digest, names),
        known=max(found.skipped - len(np.setdiff1d(made, committed)), 0),
        left_out=found.left_out(),
        key_check=None if options.identity.clear else options.identity.check,
    )


def drop_listing(results: str) -> None:
    """Remove what `open_pacs` has written: its scans are committed."""
    folder = results_folder(results)
    if LISTING in folder.names():
        filesystem, path = open_filesystem(folder.at(LISTING))
        filesystem.delete_dir(path)


def _committed(folder: ResultsFolder, retry_quarantined: bool) -> Ids:
    """Sorted ids of the scans that need not be looked at again."""
    manifests = folder.manifests()
    parts = (part for each in manifests for part in earlier_scans(folder, each).parts(["scan_id"]))
    ids = joined(part["scan_id"].to_numpy() for part in parts)
    again = quarantined_ids(folder, manifests) if retry_quarantined else joined([])
    return np.setdiff1d(ids, again)


def _first_frames(folder: ResultsFolder, digest: str, name: str) -> Ids:
    rows = folder.read_table(LISTING, digest, name, columns=["scan_id", "frame"])
    ids: Ids = rows["scan_id"].to_numpy()[rows["frame"].to_numpy() == 0]
    return ids


def _scans(folder: ResultsFolder, digest: str, names: list[str]) -> Scans:
    if not names:
        return scans_in_table(CATALOG_SCHEMA.empty_table())
    filesystem, base = open_filesystem(folder.at(LISTING, digest))
    return scans_in_files(folder.location, [f"{base}/{name}" for name in names], filesystem)


def scored_objects(results: str, source: str) -> pa.Table:
    """Where the objects that were scored are in a DICOMweb source; the server is not asked.

    Args:
        results: folder or URI.
        source: the URI that was scored; its query does not matter here.

    Returns:
        `path` and `uri` of each object once, as of a catalog.
    """
    folder, root = results_folder(results), parse_query(source).root
    paths = pa.chunked_array(
        [
            part["path"].combine_chunks()
            for manifest in folder.manifests()
            for part in earlier_scans(folder, manifest).parts(["path"])
        ],
        pa.string(),
    ).unique()
    uris = pc.binary_join_element_wise(pa.scalar(root), paths, pa.scalar("/"))
    return pa.table({"path": paths, "uri": uris})
