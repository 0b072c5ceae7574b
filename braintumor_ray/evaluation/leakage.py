"""Were the evaluated scans trained on? A figure on scans the network has seen means nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from braintumor_ray.catalog.schema import PATIENT_COLUMNS, patients_of, read_catalog
from braintumor_ray.decode.hashes import HASHES, PACKED_BYTES
from braintumor_ray.errors import GateError
from braintumor_ray.splits.duplicates import image_groups
from braintumor_ray.storage import open_filesystem

RUN_CATALOG = "catalog.parquet"
_EXAMPLES = 5
_NO_PATIENTS = pa.schema([pa.field(name, pa.string()) for name in PATIENT_COLUMNS])


@dataclass(frozen=True)
class TrainingScans:
    """What is known of the scans that a bundle was trained on.

    Attributes:
        sources: where it is known from; empty: nothing is known.
        pixels: pixel hashes of the training split.
        hashes: its perceptual hashes (`decode.hashes.pack_hashes`), each once.
        hashed: every source keeps perceptual hashes; runs of earlier versions keep none.
        patients: `catalog.schema.PATIENT_COLUMNS` of its scans.
        groups: its duplicate groups, which mean something in the catalog itself only.
    """

    sources: tuple[str, ...] = ()
    pixels: frozenset[str] = frozenset()
    hashes: frozenset[bytes] = frozenset()
    hashed: bool = False
    patients: pa.Table = field(default_factory=_NO_PATIENTS.empty_table)
    groups: frozenset[int] = field(default=frozenset())

    def have_patients_of(self, rows: pa.Table) -> list[bool]:
        """Which rows of a catalog are of a patient who was trained on.

        Patients of both are told together: either may lack a key that the other has.
        """
        both = [self.patients, rows.select(PATIENT_COLUMNS)]
        found = patients_of(pa.concat_tables(both, promote_options="permissive"))
        trained = {*found[: self.patients.num_rows]}
        return [patient in trained for patient in found[self.patients.num_rows :]]


def run_catalog(bundle: str) -> pa.Table | None:
    """The catalog that training left next to a bundle, or None."""
    parent = str(bundle).rstrip("/").rpartition("/")[0] or "."
    location = f"{parent}/{RUN_CATALOG}"
    from pyarrow.fs import FileType

    filesystem, path = open_filesystem(location)
    if filesystem.get_file_info(path).type == FileType.NotFound:
        return None
    return read_catalog(location)


def training_scans(catalog: pa.Table, bundle: str) -> TrainingScans:
    """What the evaluated catalog and the run of the bundle say was trained on."""
    own = training_rows(catalog)
    groups = frozenset() if own is None else frozenset(_known(own, "duplicate_group"))
    known = known_scans({"the evaluated catalog": own, "the bundle's run": run_scans(bundle)})
    return replace(known, groups=groups)


def run_scans(bundle: str) -> pa.Table | None:
    """The training scans of the run of a bundle, or None where that is not known."""
    catalog = run_catalog(bundle)
    return None if catalog is None else training_rows(catalog)


def known_scans(trained: Mapping[str, pa.Table | None]) -> TrainingScans:
    """Contents of tables of training scans, by where they are from; None: that one is not known."""
    tables = {source: table for source, table in trained.items() if table is not None}
    return TrainingScans(
        tuple(tables),
        _union(_known(table, "pixel_sha256") for table in tables.values()),
        _union({h for h in known_hashes(table) if h} for table in tables.values()),
        bool(tables) and all(keeps_hashes(table) for table in tables.values()),
        pa.concat_tables(
            [_NO_PATIENTS.empty_table(), *(t.select(PATIENT_COLUMNS) for t in tables.values())],
            promote_options="permissive",
        ),
    )


def known_hashes(rows: pa.Table) -> list[bytes | None]:
    """Perceptual hashes of a catalog's rows; None where it keeps none."""
    if not keeps_hashes(rows):
        return [None] * rows.num_rows
    found: list[bytes | None] = rows[HASHES].to_pylist()
    return [h if h is not None and len(h) == PACKED_BYTES else None for h in found]


def leakage(
    rows: pa.Table,
    pixel_sha256: Sequence[str | None],
    hashes: Sequence[bytes | None],
    trained: TrainingScans,
) -> dict[str, Any]:
    """Count evaluated scans that were trained on.

    Args:
        rows: the evaluated rows of a catalog.
        pixel_sha256: of their decoded images.
        hashes: their perceptual hashes, None where unknown.
        trained: from `training_scans`.

    Returns:
        `checked` (whether training scans are known), `against`, `compared_by`, `pixel_identical`,
        and of those that are not: `near_copies` (of a training scan by perceptual hashes:
        re-encoded, resized, brightened; None where no hashes are kept), `near_identical` (the
        same, and scans of a duplicate group that was trained on where hashes are lacking) and
        `same_patient`; `examples` of paths.
    """
    seen = np.array([value in trained.pixels for value in pixel_sha256], bool)
    copies = near_copies(hashes, trained) & ~seen
    near = copies
    if not trained.hashed:
        groups = [value in trained.groups for value in _values(rows, "duplicate_group")]
        near = copies | (np.array(groups, bool) & ~seen)
    patient = trained.have_patients_of(rows)
    shown = [*np.flatnonzero(seen), *np.flatnonzero(copies)][:_EXAMPLES]
    return {
        "checked": bool(trained.sources),
        "against": list(trained.sources),
        "pixel_identical": int(seen.sum()),
        "near_copies": int(copies.sum()) if trained.hashes else None,
        "compared_by": ["pixels", "perceptual hashes"] if trained.hashed else ["pixels"],
        "near_identical": int(near.sum()),
        "same_patient": int((np.array(patient, bool) & ~seen).sum()),
        "examples": [rows["path"][int(row)].as_py() for row in shown],
    }


def require_unseen(found: dict[str, Any], split: str, count: int, allow: bool) -> None:
    """Refuse to go on where images were trained on, unless that is allowed.

    Raises:
        GateError: names how many, and an example.
    """
    problems = []
    if found["pixel_identical"]:
        problems.append(
            f"{found['pixel_identical']} of {count} scans of split '{split}' have pixels that the "
            "bundle was trained on"
        )
    if found["near_copies"]:
        problems.append(
            f"{found['near_copies']} of {count} scans of split '{split}' are near copies of scans "
            "that it was trained on (re-encoded, resized or brightened)"
        )
    if problems and not allow:
        raise GateError(
            f"{' and '.join(problems)}, such as '{found['examples'][0]}', so the figures would "
            "flatter it; evaluate unseen scans, or compare all the same with --allow-leakage"
        )


def describe_check(found: Mapping[str, Any]) -> str | None:
    """One line on what the search for trained scans could not see; None where that is nothing."""
    if not found["checked"] or "perceptual hashes" in found["compared_by"]:
        return None
    return (
        "compared with the training scans by pixels only, as their run keeps no perceptual "
        "hashes: re-encoded copies would not be found"
    )


def near_copies(hashes: Sequence[bytes | None], trained: TrainingScans) -> NDArray[np.bool_]:
    """Which evaluated scans belong to a group of copies with a training scan, bool (n,)."""
    count, known = len(hashes), sorted(trained.hashes)
    if not known:
        return np.zeros(count, bool)
    # Pixels are compared elsewhere, so each scan has its own digest; None: it has no hash.
    digests = [None if h is None else f"{row}" for row, h in enumerate([*hashes, *known])]
    groups = image_groups(digests, [*hashes, *known])
    return np.isin(groups[:count], groups[count:])


def training_rows(catalog: pa.Table) -> pa.Table | None:
    """Rows of the training split, where the catalog says which those are and their pixels."""
    if not {"split", "pixel_sha256"} <= set(catalog.column_names):
        return None
    return catalog.filter(pc.fill_null(pc.equal(catalog["split"], "train"), False))


def keeps_hashes(table: pa.Table) -> bool:
    """Whether a catalog keeps perceptual hashes; a column of that name may be a CSV's own."""
    return HASHES in table.column_names and pa.types.is_binary(table.schema.field(HASHES).type)


def _union(sets: Iterable[set[Any]]) -> frozenset[Any]:
    return frozenset().union(*sets)


def _known(table: pa.Table, column: str) -> set[Any]:
    return {value for value in _values(table, column) if value is not None}


def _values(table: pa.Table, column: str) -> list[Any]:
    if column not in table.column_names:
        return [None] * table.num_rows
    values: list[Any] = table[column].to_pylist()
    return values
