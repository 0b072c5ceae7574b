"""The rows of a results folder that are to be published, and where their files are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from braintumor_ray.catalog.identity import IdentityHash, load_identity_hash
from braintumor_ray.catalog.local_key import check_key, own_key
from braintumor_ray.catalog.redaction import REDACTED
from braintumor_ray.errors import PublishError, UsageError
from braintumor_ray.predict.results import (
    ResultsFolder,
    committed_runs,
    current_files,
    current_row_files,
)
from braintumor_ray.publishing.objects import Scored
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.storage import open_filesystem

_COLUMNS = (
    "scan_id", "frame", "pixel_sha256", "predicted_class", "probabilities", "decision", "entropy",
    "out_of_domain", "cam_class", "bundle_fingerprint", "scored_at", "series_key",
)  # fmt: skip
_OPTIONAL = "prediction_set"


@dataclass(frozen=True, eq=False)
class Chosen:
    """A row to publish.

    Attributes:
        scan_id: of the row.
        generation: the run whose file holds it.
        path: of its scan below the archive's root.
        scored: the row.
        per_series: its maps are those of its series.
    """

    scan_id: int
    generation: int
    path: str
    scored: Scored
    per_series: bool = False

    @property
    def digest(self) -> str:
        """Of what is published of it, in the ledger."""
        return f"{self.scored.digest}{'-series' if self.per_series else ''}"

    @property
    def folder(self) -> str:
        """Of its objects, by its id in hexadecimal digits: ids of patients are in no name."""
        return f"{self.scan_id % 2**64:016x}"


def chosen_rows(folder: ResultsFolder, options: PublishOptions) -> Iterator[Chosen]:
    """Current rows of DICOM scans that the options ask for; one file is in memory at a time.

    Raises:
        PublishError: paths are redacted, or no such row is of a DICOM file.
        ResultsError: not a results folder, nothing committed, or a listed file is damaged.
        CatalogError: ids were hashed with another key than the one for `study`.
        UsageError: the worklist or the key cannot be read.
    """
    found = _every(folder, options)
    if options.worklist is not None:
        order = {
            scan: at for at, scan in enumerate(worklist_ids(options.worklist)[: options.limit])
        }
        found = iter(sorted(found, key=lambda row: order[row.scan_id]))
    count = 0
    for count, row in enumerate(found, start=1):
        yield row
        if count == options.limit:
            return
    if not count:
        raise PublishError(
            f"'{folder.location}' has no predicted DICOM scan of this choice; other formats have "
            "no patient to publish to (see --decision, --worklist, --study, --since)"
        )


def worklist_ids(path: str) -> list[int]:
    """The column `scan_id` of a worklist.csv, in its order.

    Raises:
        UsageError: it cannot be read, or has no such column.
    """
    try:
        filesystem, inner = open_filesystem(path)
        with filesystem.open_input_stream(inner) as stream:
            table = csv.read_csv(stream)
        return [int(each) for each in table["scan_id"].to_pylist()]
    except (OSError, KeyError, TypeError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise UsageError(
            f"--worklist '{path}' is not a worklist.csv with a column scan_id; "
            "'braintumor-ray worklist RESULTS' makes one"
        ) from error


def _every(folder: ResultsFolder, options: PublishOptions) -> Iterator[Chosen]:
    meta = folder.meta
    methods = list(meta["cam_methods"])
    further = [name for name in meta.get("optional_columns", ()) if name == _OPTIONAL]
    columns = [*_COLUMNS, *further, *methods]
    manifests = committed_runs(folder)
    holders = {path: manifest for manifest in manifests for path in current_row_files(manifest)}
    keys = _study_keys(folder, options)
    latest: tuple[int, dict[int, str]] = (-1, {})  # one generation's paths are in memory
    for path, table in current_files(folder, manifests, columns, _where(options)):
        generation = int(holders[path]["generation"])
        if latest[0] != generation:
            latest = (generation, _dicom_paths(folder, holders[path], keys))
        for row in table.to_pylist():
            place = latest[1].get(row["scan_id"])
            if place is not None:
                yield Chosen(
                    row["scan_id"], generation, place, _scored(row, meta),
                    options.map_per == "series",
                )  # fmt: skip


def _study_keys(folder: ResultsFolder, options: PublishOptions) -> list[str] | None:
    """How catalogs identify the wanted study: its hash, or where ids are clear its UID.

    Raises:
        CatalogError: ids of these results were hashed with another key.
    """
    if options.study is None:
        return None
    identity = load_identity_hash(options.hash_key_file)
    if identity.secret is None:
        identity = IdentityHash(own_key())
    check_key(folder.location, identity)
    uid = options.study.strip()
    return [uid, str(identity(uid, "study"))]


def _dicom_paths(
    folder: ResultsFolder, manifest: dict[str, Any], studies: list[str] | None
) -> dict[int, str]:
    """Path by scan id, of those that are DICOM or whose headers were not read."""
    catalog = folder.catalog_of(manifest, ["scan_id", "path", "format", "study_key"])
    kept = catalog.filter(pc.fill_null(pc.equal(catalog["format"], "dicom"), True))
    if studies is not None:
        kept = kept.filter(pc.is_in(kept["study_key"], pa.array(studies)))
    paths: list[str] = kept["path"].to_pylist()
    if any(path.startswith(REDACTED) for path in paths):
        raise PublishError(
            f"'{folder.location}' was scored with --redact-uri: its rows do not tell their files; "
            "publish where the scans are, from results that are not redacted"
        )
    return dict(zip(kept["scan_id"].to_pylist(), paths, strict=True))


def _where(options: PublishOptions) -> pc.Expression:
    where = pc.field("status") == "ok"
    if options.decision != "all":
        where &= pc.field("decision") == (options.decision == "positive")
    if options.since is not None:
        where &= pc.field("scored_at") >= pa.scalar(options.since, pa.timestamp("us", tz="UTC"))
    if options.worklist is not None:
        wanted = worklist_ids(options.worklist)[: options.limit]
        where &= pc.field("scan_id").isin(pa.array(wanted, pa.int64()))
    return where


def _scored(row: Mapping[str, Any], meta: Mapping[str, Any]) -> Scored:
    shape = tuple(meta["cam_shape"])
    cams = {
        method: np.asarray(row[method], np.float16).reshape(shape)
        for method in meta["cam_methods"]
        if row[method] is not None
    }
    fingerprint = row["bundle_fingerprint"] or meta["bundle_fingerprint"]
    figures = {name: value for name, value in row.items() if name not in meta["cam_methods"]}
    return Scored(figures, meta["class_names"], cams, fingerprint)
