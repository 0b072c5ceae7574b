"""Labels of a data set that somebody else made, in a bundle's classes or as tumor and no tumor."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from braintumor_ray.catalog.labels import (
    Groups,
    label_key,
    parse_groups,
    read_spec,
    with_named_folders,
    write_groups,
)
from braintumor_ray.errors import UsageError
from braintumor_ray.evaluation.selection import Truth, bundle_classes, mapped_labels
from braintumor_ray.models.bundle import BundleFields
from braintumor_ray.recipes.schema import DataSection
from braintumor_ray.types import Bools

POSITIVE, NEGATIVE = "tumor", "no_tumor"
_POSITIVE_WORDS = {"tumor", "tumour", "positive"}
_NEGATIVE_WORDS = {label_key(word) for word in DataSection.model_fields["negative_classes"].default}


@dataclass(frozen=True)
class ForeignTruth:
    """What the scans of a foreign data set truly show.

    Attributes:
        truth: in the bundle's classes. Where the labels show only whether there is a tumor, names
            are `POSITIVE` and `NEGATIVE` and indices the first positive and negative class.
        decision_only: the labels show only whether there is a tumor.
        unmapped: scans of each label that the mapping leaves out.
    """

    truth: Truth
    decision_only: bool
    unmapped: dict[str, int]

    def without(self, rows: Bools) -> Truth:
        """The truth with some rows, bool (n,), taken for unlabeled, so that none measures them."""
        names = [None if out else n for n, out in zip(self.truth.names, rows, strict=True)]
        return replace(self.truth, names=names, indices=np.where(rows, -1, self.truth.indices))


def foreign_truth(
    data_set: str, catalog: pa.Table, fields: BundleFields, classes: str | None = None
) -> ForeignTruth:
    """Map a data set's labels.

    A class of the mapping is one of the bundle's; or `tumor` (also tumour, positive, or positive
    classes joined by +) for any positive class; or a usual word for none. As soon as one is not
    the bundle's own, all labels show only whether there is a tumor.

    Args:
        data_set: its name, for messages.
        catalog: n rows with `label`.
        fields: of the bundle.
        classes: `--classes` text, or @FILE; None: the bundle's own mapping, else each label is a
            class.

    Raises:
        UsageError: no labels, or labels that do not map: names them and how to map them.
    """
    spec = read_spec(classes)
    groups = parse_groups(spec) if spec else bundle_classes(fields)
    labels: list[str | None] = with_named_folders(catalog, groups)["label"].to_pylist()
    present = sorted({label for label in labels if label is not None})
    if not present:
        raise UsageError(
            f"data set '{data_set}' has no labels; put scans into one folder per class, or give a "
            "CSV with a label column"
        )
    names = _names(labels, groups, fields, given=classes is not None)
    used = {name for name in names if name is not None}
    positive = {name: _is_positive(name, fields) for name in used}
    unknown = sorted(name for name, kind in positive.items() if kind is None)
    if unknown or not used:
        raise _unmapped(data_set, present, fields, classes, unknown)
    decision_only = not used <= set(fields.class_names)
    if decision_only:
        names = [n if n is None else POSITIVE if positive[n] else NEGATIVE for n in names]
    left_out = [
        label
        for label, name in zip(labels, names, strict=True)
        if name is None and label is not None
    ]
    truth = _truth(names, labels, fields, decision_only)
    return ForeignTruth(truth, decision_only, dict(Counter(left_out).most_common()))


def _names(
    labels: list[str | None], groups: Groups | None, fields: BundleFields, *, given: bool
) -> list[str | None]:
    """Class of each scan; the bundle's own mapping counts only where it knows one of the labels."""
    names = mapped_labels(labels, groups)
    if not given and not any(names):
        names = labels
    own = {label_key(name): name for name in fields.class_names}
    return [None if name is None else own.get(label_key(name), name) for name in names]


def _is_positive(name: str, fields: BundleFields) -> bool | None:
    """Whether a class of a mapping means a tumor; None: it is unknown."""
    parts = {part.strip() for part in name.split("+")}
    positive = set(fields.positive_classes)
    if name in positive or parts <= positive or label_key(name) in _POSITIVE_WORDS:
        return True
    if parts <= set(fields.class_names) - positive or label_key(name) in _NEGATIVE_WORDS:
        return False
    return None


def _truth(
    names: list[str | None],
    labels: list[str | None],
    fields: BundleFields,
    decision_only: bool,
) -> Truth:
    order = {name: index for index, name in enumerate(fields.class_names)}
    if decision_only:
        negative = next(n for n in fields.class_names if n not in fields.positive_classes)
        order = {POSITIVE: order[fields.positive_classes[0]], NEGATIVE: order[negative]}
    indices = [-1 if name is None else order[name] for name in names]
    unlabeled = labels.count(None)
    return Truth(names, np.array(indices, np.int64), unlabeled, names.count(None) - unlabeled)


def _unmapped(
    data_set: str,
    present: list[str],
    fields: BundleFields,
    classes: str | None,
    unknown: list[str],
) -> UsageError:
    known = ", ".join(fields.class_names)
    found = f"data set '{data_set}' has the labels {', '.join(present)}"
    if classes is None:
        return UsageError(
            f"{found}, and '{unknown[0]}' is not one of the bundle's classes ({known}); map them "
            f"with --classes, such as '{_suggestion(present, fields)}' (tumor: any positive class)"
        )
    if not unknown:
        return UsageError(
            f"{found}, and --classes '{classes}' names none of them; write CLASS=LABEL+LABEL, such "
            f"as '{_suggestion(present, fields)}' (tumor: any positive class)"
        )
    return UsageError(
        f"--classes '{classes}': '{unknown[0]}' is neither one of the bundle's classes ({known}) "
        f"nor tumor, which means any positive class; {found}"
    )


def _suggestion(present: list[str], fields: BundleFields) -> str:
    """A mapping of all labels; where no word means none, the first one is shown as none."""
    none = [label for label in present if _is_positive(label, fields) is False] or present[:1]
    tumors = [label for label in present if label not in none]
    groups = {POSITIVE: tumors, NEGATIVE: none}
    return write_groups({name: members for name, members in groups.items() if members})
