"""Which scans are evaluated, what they truly show, and which of them belong together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.labels import (
    Groups,
    parse_groups,
    read_spec,
    recorded_groups,
    with_named_folders,
    with_variants,
    write_groups,
)
from braintumor_ray.catalog.schema import patients_of
from braintumor_ray.errors import UsageError
from braintumor_ray.models.bundle import BundleFields
from braintumor_ray.splits.splits import merge_groups
from braintumor_ray.types import Ints

ALL = "all"
_ELSE = "study, series, file or group of copies"


@dataclass(frozen=True)
class Truth:
    """What the scans of a catalog truly show, in the bundle's classes.

    Attributes:
        names: class name per scan; None: unlabeled or left out.
        indices: int64 (n,), index in the bundle's class names, -1 where the name is None.
        unlabeled: scans without a label.
        left_out: scans whose label the class mapping leaves out.
    """

    names: list[str | None]
    indices: Ints
    unlabeled: int
    left_out: int


def select_split(catalog: pa.Table, split: str, column: str = "split") -> pa.Table:
    """The rows of one split, or all.

    Args:
        catalog: any catalog.
        split: a value of the split column, or 'all'.
        column: the split column.

    Raises:
        UsageError: there is no such column, or no scan in that split.
    """
    if split == ALL:
        return catalog
    if column not in catalog.column_names:
        raise UsageError(
            f"--split {split}: the catalog has no column '{column}'; give the RUN/catalog.parquet "
            "that training wrote, make one with 'braintumor-ray split', or use --split all"
        )
    rows = catalog.filter(pc.fill_null(pc.equal(catalog[column], split), False))
    if not rows.num_rows:
        names = sorted({name for name in catalog[column].to_pylist() if name is not None})
        raise UsageError(
            f"--split {split}: no scan has it; column '{column}' holds {', '.join(names) or 'none'}"
        )
    return rows


def true_classes(catalog: pa.Table, fields: BundleFields, classes: str | None = None) -> Truth:
    """Labels in the bundle's classes.

    `class_name`, which training wrote, is believed where it holds the bundle's classes only; else
    labels go through the mapping `classes`, or the one in the bundle's recipe.

    Raises:
        UsageError: a class that the bundle does not know.
    """
    spec = read_spec(classes)
    groups = parse_groups(spec) if spec else bundle_classes(fields)
    catalog = with_named_folders(catalog, groups)
    labels = catalog["label"].to_pylist()
    order = {name: index for index, name in enumerate(fields.class_names)}
    names = catalog["class_name"].to_pylist() if "class_name" in catalog.column_names else labels
    if classes is not None or names is labels or not {*names} - {None} <= order.keys():
        names = mapped_labels(labels, groups)
    unknown = sorted({name for name in names if name is not None and name not in order})
    if unknown:
        raise UsageError(
            f"class '{unknown[0]}' is not one of the bundle's ({', '.join(fields.class_names)}); "
            "map the labels with --classes, such as "
            f"'{write_groups({fields.class_names[0]: [unknown[0]]})},...'"
        )
    indices = [-1 if name is None else order[name] for name in names]
    unlabeled = sum(label is None for label in labels)
    missing = sum(name is None for name in names)
    return Truth(names, np.array(indices, np.int64), unlabeled, missing - unlabeled)


def bundle_classes(fields: BundleFields) -> Groups | None:
    """The class mapping that a bundle was trained with, labels by class."""
    data = fields.recipe.get("data", {})
    spec = data.get("classes") or fields.recipe.get("classes")
    return recorded_groups(str(spec), fields.class_names) if spec else None


def mapped_labels(labels: Sequence[str | None], groups: Groups | None) -> list[str | None]:
    """Class name of each label by a mapping; without one each label is its own class.

    Unlike in training, labels of the mapping that do not occur here are no error. Labels written
    otherwise (`Glioma Tumor`, `glioma_tumor`) are the same, as in training.

    Raises:
        UsageError: a label is named twice.
    """
    if groups is None:
        return list(labels)
    pairs = [(label, name) for name, members in groups.items() for label in members]
    of_label = dict(pairs)
    if len(of_label) < len(pairs):
        twice = next(label for label in of_label if sum(label == other for other, _ in pairs) > 1)
        raise UsageError(f"--classes: '{twice}' is named twice; once is allowed")
    of_label = with_variants(of_label, {label for label in labels if label is not None})
    return [None if label is None else of_label.get(label) for label in labels]


def clusters(catalog: pa.Table, image_groups: Ints) -> tuple[Ints, str]:
    """Which scans are not independent of each other, and by what that is known.

    Scans of one patient (`catalog.schema.patients_of`), copies found here, and scans of one
    `duplicate_group` of the catalog belong together, transitively.

    Returns:
        int64 (n,), and the words for a report.
    """
    patients = catalog["patient_key"].to_pylist()
    groups = merge_groups(patients_of(catalog), image_groups)
    if "duplicate_group" in catalog.column_names:
        recorded = catalog["duplicate_group"].to_pylist()
        keys = [None if value is None else str(value) for value in recorded]
        groups = merge_groups(keys, groups)
    known = sum(bool(patient) for patient in patients)
    if known == len(patients):
        return groups, "patient"
    if known:
        return groups, f"patient ({known} of {len(patients)} scans), else {_ELSE}"
    return groups, f"{_ELSE} (patients are not known)"
