"""Splits of a run: training, validation, test; all copies of an image are in one of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.catalog.reviewed import SOURCE_LABEL
from braintumor_ray.catalog.schema import patients_of
from braintumor_ray.catalog.sources import SOURCE, require_source
from braintumor_ray.decode.hashes import HASHES
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.errors import GateError, UsageError
from braintumor_ray.splits.duplicates import image_groups
from braintumor_ray.splits.splits import LeakReport, check_leaks, grouped_split, merge_groups
from braintumor_ray.training.options import SplitOptions
from braintumor_ray.types import Progress

HASH_COLUMNS = ["scan_id", "status", "reason", "pixel_sha256", HASHES]


def with_splits(
    catalog: pa.Table,
    hashes: pa.Table,
    classes: ClassMap,
    options: SplitOptions,
    before: ClassMap | None = None,
) -> tuple[pa.Table, LeakReport]:
    """The catalog with class_name, status, reason, pixel_sha256, hashes, duplicate_group and split.

    Args:
        catalog: `catalog.schema.CATALOG_SCHEMA`, perhaps with a `split` column, which then decides.
        hashes: columns `HASH_COLUMNS` of the decoded shards, in any order.
        classes: which labels are learnt.
        options: see `SplitOptions`.
        before: classes of the source's own labels where reviewers gave others: scans are split
            by these, so that a review moves no scan out of the test split. Then `hashes` must be
            of the scans that either label has a class for.

    Raises:
        GateError: the split leaks and that was not allowed.
        UsageError: a class has too few groups, there is no official split, or the catalog has
            another one.
    """
    check_split_choice(catalog, options)
    hashes = in_order(hashes, catalog["scan_id"].to_numpy())
    digests = hashes["pixel_sha256"].to_pylist()
    names = learnt_names(catalog, hashes, classes)
    if before is None or options.leave_out is not None:
        groups = scan_groups(catalog, hashes, names)
        split = _assign(catalog, names, groups, options)
    else:
        split = _split_as_before(catalog, hashes, names, options, before)
        groups = scan_groups(catalog, hashes, split)
    leaks = check_leaks(split, groups, digests)
    if leaks.leaky and not options.allow_leakage:
        raise GateError(
            f"the split leaks: {leaks.describe()}; use --split-by group, or --allow-leakage to "
            "compare with published figures"
        )
    columns = {
        "class_name": pa.array(names, pa.string()),
        "status": hashes["status"],
        "reason": hashes["reason"],
        "pixel_sha256": hashes["pixel_sha256"],
        HASHES: hashes[HASHES],  # by which later commands find near copies of what was trained on
        "duplicate_group": pa.array(groups, pa.int64()),
        "split": pa.array(split, pa.string()),
    }
    return with_columns(catalog, columns), leaks


def with_columns(catalog: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """A catalog with some columns appended; those of the same names are replaced."""
    catalog = catalog.drop_columns([name for name in columns if name in catalog.column_names])
    for name, values in columns.items():
        catalog = catalog.append_column(name, values)
    return catalog


def check_split_choice(catalog: pa.Table, options: SplitOptions) -> None:
    """Refuse an official split that is not there, or that the catalog's own split contradicts.

    Raises:
        UsageError: names the first scan on which the two differ, or a source that cannot be
            left out.
    """
    if options.leave_out is not None:
        _check_leave_out(catalog, options)
    if options.by != "official":
        return
    official = catalog["official_split"].to_pylist()
    if not {"train", "test"} <= set(official):
        raise UsageError(
            "--split-by official: the source has no Training and Testing folders; use "
            "--split-by group"
        )
    if not has_own_split(catalog):
        return
    own = catalog["split"].to_pylist()
    for path, ours, theirs in zip(catalog["path"].to_pylist(), own, official, strict=True):
        if None not in (ours, theirs) and (ours == "test") != (theirs == "test"):
            raise UsageError(
                f"--split-by official: the catalog's column 'split' has '{path}' in {ours}, the "
                f"source's folders in {theirs}; leave out the option to follow the column, or "
                "drop the column to follow the folders"
            )


def _check_leave_out(catalog: pa.Table, options: SplitOptions) -> None:
    require_source(catalog, str(options.leave_out))
    if options.by == "official" or has_own_split(catalog):
        given = "--split-by official" if options.by == "official" else "the catalog's 'split'"
        raise UsageError(
            f"--leave-out '{options.leave_out}' makes the test split, and {given} another one; "
            "choose one of them"
        )


def has_own_split(catalog: pa.Table) -> bool:
    """Whether a catalog has a column of splits; then it decides."""
    return "split" in catalog.column_names


def split_catalog(
    catalog: pa.Table,
    fractions: dict[str, float],
    seed: int,
    progress: Progress | None = None,
) -> pa.Table:
    """A catalog with a column of splits, for `train` to follow; every label is a class.

    Raises:
        UsageError: there are no two classes, or one has too few groups.
    """
    labels = [label for label in catalog["label"].to_pylist() if label is not None]
    classes = ClassMap.parse(None, labels)
    bare = catalog.drop_columns([c for c in ("split",) if c in catalog.column_names])
    options = SplitOptions(fractions, seed=seed)
    before = None
    if SOURCE_LABEL in catalog.column_names:
        own = [label for label in catalog[SOURCE_LABEL].to_pylist() if label is not None]
        before = ClassMap.parse(None, own) if len(set(own)) > 1 else None
    return with_splits(bare, hash_scans(bare, progress), classes, options, before)[0]


def counts_by_split(catalog: pa.Table) -> dict[str, dict[str, int]]:
    """Scans per split and class, for the log and for checks."""
    pairs = zip(catalog["split"].to_pylist(), catalog["class_name"].to_pylist(), strict=True)
    counts: dict[str, dict[str, int]] = {}
    for (split, name), count in sorted(Counter(p for p in pairs if None not in p).items()):
        counts.setdefault(split, {})[name] = count
    return counts


def check_counts(counts: dict[str, dict[str, int]], classes: ClassMap, workers: int) -> None:
    """Refuse what would fail only after an epoch.

    Raises:
        UsageError: a class is missing from training or validation, or there are fewer training
            scans than workers.
    """
    for split in ("train", "val"):
        for name in classes.classes:
            if not counts.get(split, {}).get(name):
                raise UsageError(
                    f"class '{name}' has no scan in the {split} split ({_in_words(counts)}); it "
                    "needs more patients or other fractions, or leave it out by --classes"
                )
    trained = sum(counts["train"].values())
    if trained < workers:
        raise UsageError(f"{trained} training scans for {workers} workers; use fewer workers")


def _in_words(counts: dict[str, dict[str, int]]) -> str:
    """Scans per split and class: train: glioma 12, none 9; val: glioma 3."""
    rows = {split: (f"{name} {n}" for name, n in row.items()) for split, row in counts.items()}
    return "; ".join(f"{split}: {', '.join(row)}" for split, row in rows.items())


def imbalance(counts: dict[str, int]) -> float:
    """Scans of the largest class over scans of the smallest."""
    return max(counts.values()) / max(min(counts.values()), 1)


def scan_groups(
    catalog: pa.Table, hashes: pa.Table, used: Sequence[str | None]
) -> npt.NDArray[np.int64]:
    """Copies of an image and scans of a patient have one number, int64 (n,).

    Args:
        catalog: for `catalog.schema.patients_of`.
        hashes: columns `HASH_COLUMNS`, a row per row of the catalog.
        used: None for scans that are not used: they make no others copies of each other. Whether
            they are decoded depends on the cache, and a split must not.
    """
    kept = pa.array([name is not None for name in used])
    digests, packed = (pc.if_else(kept, hashes[n], None) for n in ("pixel_sha256", HASHES))
    images = image_groups(digests.to_pylist(), packed.to_pylist())
    return merge_groups(patients_of(catalog), images)


def _split_as_before(
    catalog: pa.Table,
    hashes: pa.Table,
    names: list[str | None],
    options: SplitOptions,
    before: ClassMap,
) -> list[str | None]:
    """The split that the scans had by the source's labels; scans that had none join training.

    A scan that joins stays in validation or test where the catalog or the source's folders have it
    there. Else it follows its copies and its patient, and is in no split where they are in several.
    """
    known = learnt_names(catalog, hashes, before, SOURCE_LABEL)
    split = _assign(catalog, known, scan_groups(catalog, hashes, known), options)
    used = [old or new for old, new in zip(known, names, strict=True)]
    groups = scan_groups(catalog, hashes, used).tolist()
    places: dict[int, set[str]] = {}
    for group, place in zip(groups, split, strict=True):
        if place is not None:
            places.setdefault(group, set()).add(place)
    joined = [
        place if old else _joined(own, places.get(group, {"train"}))
        for group, old, place, own in zip(
            groups, known, split, _stated(catalog, options), strict=True
        )
    ]
    return [place if name else None for place, name in zip(joined, names, strict=True)]


def _joined(stated: str | None, places: set[str]) -> str | None:
    return next(iter(places)) if stated in (None, "train") and len(places) == 1 else stated


def _stated(catalog: pa.Table, options: SplitOptions) -> list[str | None]:
    """The splits in the catalog's column, else in the source's folders if asked for; None: free."""
    if has_own_split(catalog):
        return list(catalog["split"].to_pylist())
    if options.by == "official":
        return list(catalog["official_split"].to_pylist())
    return [None] * catalog.num_rows


def _assign(
    catalog: pa.Table,
    names: list[str | None],
    groups: npt.NDArray[np.int64],
    options: SplitOptions,
) -> list[str | None]:
    keys = stable_keys(catalog)
    if options.leave_out is not None:
        return _left_out(catalog, names, groups, options, keys)
    own = has_own_split(catalog)
    if not own and options.by == "group":
        return list(grouped_split(names, groups, options.fractions, options.seed, keys=keys))
    stated = _stated(catalog, options)
    if own or "val" in stated:
        return [s if name else None for s, name in zip(stated, names, strict=True)]
    inside = [n if s == "train" else None for n, s in zip(names, stated, strict=True)]
    fractions = without_test(options.fractions)
    carved = grouped_split(inside, groups, fractions, options.seed, keys=keys)
    return [
        (c if s == "train" else s) if n else None
        for c, s, n in zip(carved, stated, names, strict=True)
    ]


def _left_out(
    catalog: pa.Table,
    names: list[str | None],
    groups: npt.NDArray[np.int64],
    options: SplitOptions,
    keys: list[str],
) -> list[str | None]:
    """One source tests; what has a copy or a patient there is in no split."""
    tested = np.array(catalog[SOURCE].to_pylist(), object) == options.leave_out
    known = ~tested & np.isin(groups, groups[tested])
    rest = [None if out else name for out, name in zip(tested | known, names, strict=True)]
    shares = without_test(options.fractions)
    split = list(grouped_split(rest, groups, shares, options.seed, keys=keys))
    return [
        "test" if test and name else own
        for test, name, own in zip(tested, names, split, strict=True)
    ]


def without_test(fractions: Mapping[Any, float]) -> dict[str, float]:
    """The shares of train and val among the scans that are not tested."""
    share = fractions["val"] / (fractions["train"] + fractions["val"])
    return {"train": 1 - share, "val": share}


def learnt_names(
    catalog: pa.Table, hashes: pa.Table, classes: ClassMap, column: str = "label"
) -> list[str | None]:
    """The class of each scan; None where it is left out or cannot be read."""
    readable = hashes["pixel_sha256"].is_valid().to_pylist()
    return [
        classes.apply(label) if ok else None
        for label, ok in zip(catalog[column].to_pylist(), readable, strict=True)
    ]


def stable_keys(catalog: pa.Table) -> list[str]:
    """Paths and frames: unlike scan ids they do not change when an archive is copied."""
    pairs = zip(catalog["path"].to_pylist(), catalog["frame"].to_pylist(), strict=True)
    return [f"{path}#{frame}" for path, frame in pairs]


def in_order(hashes: pa.Table, scan_ids: npt.NDArray[np.int64]) -> pa.Table:
    """The rows of `hashes` in the order of the scans; null for scans that were not decoded."""
    found = hashes["scan_id"].to_numpy()
    order = np.argsort(found)
    place = np.searchsorted(found, scan_ids, sorter=order)
    position = order[np.minimum(place, len(found) - 1)]
    return hashes.take(pa.array(position, mask=found[position] != scan_ids))
