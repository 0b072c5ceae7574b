"""A DICOMweb source night by night: only new objects are read, a killed listing goes on.

RESULTS/listing/    catalog rows that are made, until they are committed
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.pacs_parts import Parts, drop_parts, kept_parts
from braintumor_ray.catalog.schema import CATALOG_SCHEMA
from braintumor_ray.dicomweb.query import parse_query
from braintumor_ray.predict.results import ResultsFolder, results_folder
from braintumor_ray.scoring.plan import earlier_scans, quarantined_ids
from braintumor_ray.scoring.scans import (
    Ids,
    Scans,
    are_in,
    joined,
    keys_of,
    scans_in_files,
    scans_in_table,
)
from braintumor_ray.storage import Folder, open_filesystem
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
    known = _committed(folder, retry_quarantined)
    parts = kept_parts(source, Folder(folder.at(LISTING)), options, known, progress)
    return replace(
        _scans(parts),
        known=parts.known,
        left_out=parts.left_out,
        key_check=None if options.identity.clear else options.identity.check,
    )


def drop_listing(results: str) -> None:
    """Remove what `open_pacs` has written: its scans are committed."""
    drop_parts(Folder(results_folder(results).at(LISTING)))


def _committed(folder: ResultsFolder, retry_quarantined: bool) -> Ids:
    """Sorted ids of the scans that need not be looked at again.

    An object is known by its first frame. So none of its frames is among them where one will be
    tried again, or where its header was not read: nobody knows then how many frames it has.
    """
    manifests = folder.manifests()
    again = np.sort(quarantined_ids(folder, manifests)) if retry_quarantined else joined([])
    ids, objects, unsure = [], [], []
    for manifest in manifests:
        for part in earlier_scans(folder, manifest).parts(["scan_id", "path", "format"]):
            ids.append(part["scan_id"].to_numpy())
            objects.append(keys_of(part, "path", frame=False))
            unread = part["format"].is_null().to_numpy()
            unsure.append(objects[-1][unread | are_in(ids[-1], again)])
    return np.unique(joined(ids)[~are_in(joined(objects), np.unique(joined(unsure)))])


def _scans(parts: Parts) -> Scans:
    if not parts.names:
        return scans_in_table(CATALOG_SCHEMA.empty_table())
    filesystem, base = open_filesystem(parts.folder.location)
    paths = [f"{base}/{name}" for name in parts.names]
    return scans_in_files(parts.folder.location, paths, filesystem)


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
