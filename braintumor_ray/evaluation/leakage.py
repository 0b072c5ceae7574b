"""Were the evaluated scans trained on? A figure on scans the network has seen means nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.schema import read_catalog
from braintumor_ray.errors import GateError
from braintumor_ray.storage import open_filesystem

RUN_CATALOG = "catalog.parquet"
_EXAMPLES = 5


@dataclass(frozen=True)
class TrainingScans:
    """What is known of the scans that a bundle was trained on.

    Attributes:
        sources: where it is known from; empty: nothing is known.
        pixels: pixel hashes of the training split.
        patients: keys of its patients.
        groups: its duplicate groups, which mean something in the catalog itself only.
    """

    sources: tuple[str, ...] = ()
    pixels: frozenset[str] = frozenset()
    patients: frozenset[str] = frozenset()
    groups: frozenset[int] = field(default=frozenset())


def run_catalog(bundle: str) -> pa.Table | None:
    """The catalog that training left beside a bundle, or None."""
    parent = str(bundle).rstrip("/").rpartition("/")[0] or "."
    location = f"{parent}/{RUN_CATALOG}"
    from pyarrow.fs import FileType

    filesystem, path = open_filesystem(location)
    if filesystem.get_file_info(path).type == FileType.NotFound:
        return None
    return read_catalog(location)


def training_scans(catalog: pa.Table, bundle: str) -> TrainingScans:
    """What the evaluated catalog and the run beside the bundle say was trained on."""
    sources, pixels, patients = [], set(), set()
    own = _training_rows(catalog)
    groups: frozenset[int] = frozenset()
    if own is not None:
        sources.append("the evaluated catalog")
        groups = frozenset(_known(own, "duplicate_group"))
    beside = run_catalog(bundle)
    trained = None if beside is None else _training_rows(beside)
    if trained is not None:
        sources.append("the bundle's run")
    for table in (own, trained):
        if table is not None:
            pixels |= _known(table, "pixel_sha256")
            patients |= _known(table, "patient_key")
    return TrainingScans(tuple(sources), frozenset(pixels), frozenset(patients), groups)


def leakage(
    rows: pa.Table, pixel_sha256: Sequence[str | None], trained: TrainingScans
) -> dict[str, Any]:
    """Count evaluated scans that were trained on.

    Args:
        rows: the evaluated rows of a catalog.
        pixel_sha256: of their decoded images.
        trained: from `training_scans`.

    Returns:
        `checked` (whether training scans are known), `against`, `pixel_identical`, and of those
        that are not: `near_identical` (their duplicate group was trained on) and `same_patient`;
        `examples` of paths.
    """
    seen = [value in trained.pixels for value in pixel_sha256]
    near = [value in trained.groups for value in _values(rows, "duplicate_group")]
    patient = [value in trained.patients for value in _values(rows, "patient_key")]
    paths = rows["path"].to_pylist()
    return {
        "checked": bool(trained.sources),
        "against": list(trained.sources),
        "pixel_identical": sum(seen),
        "near_identical": sum(n and not s for n, s in zip(near, seen, strict=True)),
        "same_patient": sum(p and not s for p, s in zip(patient, seen, strict=True)),
        "examples": [path for path, s in zip(paths, seen, strict=True) if s][:_EXAMPLES],
    }


def require_unseen(found: dict[str, Any], split: str, count: int, allow: bool) -> None:
    """Refuse to go on where pixels were trained on, unless that is allowed.

    Raises:
        GateError: names how many, and an example.
    """
    if found["pixel_identical"] and not allow:
        raise GateError(
            f"{found['pixel_identical']} of {count} scans of split '{split}' have pixels that the "
            f"bundle was trained on (such as '{found['examples'][0]}'), so the figures would "
            "flatter it; evaluate unseen scans, or compare all the same with --allow-leakage"
        )


def _training_rows(catalog: pa.Table) -> pa.Table | None:
    """Rows of the training split, where the catalog says which those are and their pixels."""
    if not {"split", "pixel_sha256"} <= set(catalog.column_names):
        return None
    return catalog.filter(pc.fill_null(pc.equal(catalog["split"], "train"), False))


def _known(table: pa.Table, column: str) -> set[Any]:
    return {value for value in _values(table, column) if value is not None}


def _values(table: pa.Table, column: str) -> list[Any]:
    if column not in table.column_names:
        return [None] * table.num_rows
    values: list[Any] = table[column].to_pylist()
    return values
