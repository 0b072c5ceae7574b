"""The catalog of a DICOMweb source in parts that are kept: a killed listing goes on from them.

    FOLDER/SOURCE/*.parquet    catalog rows, of about 1,000 objects each

SOURCE is a keyed digest of the source and its query. The rows hold hashes and tokens, no ids.
"""

import hmac
import secrets
from dataclasses import dataclass

import numpy as np

from braintumor_ray.catalog.build import catalog_parts, joined
from braintumor_ray.catalog.listing import Listing, with_left_out
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.pacs import Ids, PacsListing
from braintumor_ray.catalog.schema import write_catalog
from braintumor_ray.storage import Folder, open_filesystem, write_table
from braintumor_ray.types import Progress


@dataclass(frozen=True)
class Parts:
    """The parts of a listing that is complete.

    Attributes:
        folder: where they are.
        names: of the files.
        known: objects that the caller knew and that are in no part.
        left_out: what was found and is no image.
    """

    folder: Folder
    names: list[str]
    known: int
    left_out: Listing


def kept_parts(
    source: str,
    folder: Folder,
    options: CatalogOptions,
    known: Ids,
    progress: Progress | None = None,
) -> Parts:
    """List a source; parts of an earlier, killed listing are kept, and their objects not read.

    Args:
        source: dicomweb+https://host/dicom-web?KEY=VALUE&...
        folder: for the parts; `drop_parts` removes it.
        options: how headers become rows.
        known: int64, sorted: `scan_id` of first frames that need no row.
        progress: see `PacsListing`.

    Raises:
        ServerError: the server is down, refuses access, or is none; what is listed is kept.
        CatalogError: no image matches, and none is known.
        UsageError: the source is not written as one.
    """
    found = PacsListing(source, options.identity, progress)
    digest = hmac.digest(found.key or b"clear", source.encode(), "sha256").hex()[:16]
    own = Folder(folder.at(digest))
    names = [name for name in own.names() if name.endswith(".parquet")]
    made = np.concatenate([np.empty(0, np.int64), *(_first_frames(own, name) for name in names)])
    found.known = np.union1d(known, made)
    for part in catalog_parts(found, options):
        names.append(f"{secrets.token_hex(8)}.parquet")  # another process may list the same
        write_table(own.at(names[-1]), part)
    skipped = found.skipped - len(np.unique(made))  # whose rows are in parts, scored or not
    return Parts(own, names, max(skipped, 0), found.left_out())


def drop_parts(folder: Folder) -> None:
    """Remove what `kept_parts` has written, of all sources."""
    if folder.names():
        filesystem, path = open_filesystem(folder.location)
        filesystem.delete_dir(path)


def write_pacs_catalog(
    source: str, output: str, options: CatalogOptions, progress: Progress | None = None
) -> None:
    """Write the catalog of a DICOMweb source; killed and called again, it goes on.

    Parts are in `OUTPUT.listing` until then. All rows are in memory at the end, about 0.7 KB each.

    Raises:
        ServerError, CatalogError, UsageError: see `kept_parts`.
    """
    folder = Folder(f"{output}.listing")
    parts = kept_parts(source, folder, options, np.empty(0, np.int64), progress)
    table = joined((parts.folder.read_table(name) for name in parts.names), options)
    write_catalog(with_left_out(table, parts.left_out), output)
    drop_parts(folder)


def _first_frames(folder: Folder, name: str) -> Ids:
    rows = folder.read_table(name, columns=["scan_id", "frame"])
    ids: Ids = rows["scan_id"].to_numpy()[rows["frame"].to_numpy() == 0]
    return ids
