"""Splits that keep all images of a patient, and all copies of an image, on one side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from braintumor_ray.errors import UsageError
from braintumor_ray.splits.duplicates import connected_rows, first_with_same_value


@dataclass(frozen=True)
class LeakReport:
    """Groups and images that occur in more than one split.

    Attributes:
        groups: Groups with scans in more than one split.
        pixel_images: Distinct images (by pixels) that occur in more than one split.
        group_rows: Per split, its scans whose group also has scans in another split.
        pixel_rows: Per split, its scans whose pixels also occur in another split.
    """

    groups: int
    pixel_images: int
    group_rows: dict[str, int] = field(default_factory=dict)
    pixel_rows: dict[str, int] = field(default_factory=dict)

    @property
    def leaky(self) -> bool:
        """True if any group or image is in more than one split."""
        return self.groups > 0 or self.pixel_images > 0

    def describe(self) -> str:
        """One sentence with the counts, for the message of a refusal."""
        if not self.leaky:
            return "no group and no pixel-identical image is in more than one split"
        rows = ", ".join(f"{count} of {name}" for name, count in self.group_rows.items())
        return (
            f"{self.groups} groups and {self.pixel_images} pixel-identical images are in more than "
            f"one split (scans concerned: {rows})"
        )


def grouped_split(
    labels: Sequence[str | None],
    groups: NDArray[np.int64],
    fractions: Mapping[str, float],
    seed: int,
    *,
    keys: Sequence[str | int] | None = None,
    allow_missing: bool = False,
) -> NDArray[np.object_]:
    """Assigns whole groups to splits, so that each class is divided by `fractions`.

    Every split first gets one group of every class, the smallest split the smallest group. The
    others follow, largest first and otherwise shuffled, each to the split where it least adds to
    the sum of (scans - target)^2 / target over splits and classes. With groups of one scan a class
    of three splits ends within two scans of its fractions. scikit-learn's `StratifiedGroupKFold`
    over ten folds is about as close where all groups are small, far off where a few patients have
    most of the scans, and knows tenths only.

    Args:
        labels: n class names; None for scans without a label.
        groups: int (n,), scans of one group stay together (see `merge_groups`).
        fractions: Share of each split, by name, positive and summing to 1.
        seed: Seed of the shuffle.
        keys: n distinct stable keys, such as scan ids: with them the result does not depend on the
            order of the rows. None takes the row number.
        allow_missing: Accept a class that some split lacks, rather than raise.

    Returns:
        object (n,): a name of `fractions`, or None for scans without a label.

    Raises:
        UsageError: fractions that are not positive or do not sum to 1; lengths that differ; keys
            that repeat; a class with too few groups for a share in every split.
    """
    names, shares = _checked_fractions(fractions)
    _check_lengths(labels=labels, groups=groups, keys=keys)
    rows = _labeled_rows(labels, keys)
    split = np.full(len(labels), None, dtype=object)
    if len(rows) == 0:
        return split
    classes, counts, group_of_row = _class_counts(labels, groups, rows)
    assigned = _assign_groups(counts, shares, np.random.default_rng(seed))
    if not allow_missing:
        _check_every_class_everywhere(classes, names, counts, assigned)
    split[rows] = np.array(names, dtype=object)[assigned[group_of_row]]
    return split


def grouped_folds(
    labels: Sequence[str | None],
    groups: NDArray[np.int64],
    k: int,
    seed: int,
    *,
    keys: Sequence[str | int] | None = None,
    allow_missing: bool = False,
) -> NDArray[np.int64]:
    """Numbers the folds of a stratified, grouped k-fold cross-validation.

    Args:
        labels: n class names; None for scans without a label.
        groups: int (n,), scans of one group stay in one fold.
        k: Number of folds, 2 or more.
        seed: Seed of the shuffle.
        keys: As in `grouped_split`.
        allow_missing: Accept a class with fewer than `k` groups, rather than raise.

    Returns:
        int64 (n,): the fold in which a scan is held out, 0 to k - 1; -1 without a label.

    Raises:
        UsageError: `k` is below 2 or above the number of groups; lengths that differ; keys that
            repeat; a class with fewer than `k` groups.
    """
    _check_lengths(labels=labels, groups=groups, keys=keys)
    rows = _labeled_rows(labels, keys)
    classes, counts, group_of_row = _class_counts(labels, groups, rows)
    if not 2 <= k <= len(counts):
        raise UsageError(f"{k} folds of {len(counts)} labeled groups; choose 2 to {len(counts)}")
    for name, held in zip(classes, (counts > 0).sum(axis=0), strict=True):
        if held < k and not allow_missing:
            raise UsageError(f"class {name} has {held} groups for {k} folds; use fewer folds")
    folds = np.full(len(labels), -1, dtype=np.int64)
    targets = [str(labels[row]) for row in rows]
    splitter = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(rows, targets, group_of_row)):
        folds[rows[held_out]] = fold
    return folds


def merge_groups(
    patient: Sequence[str | None], duplicate_group: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Joins scans of one patient and copies of one image, transitively.

    Args:
        patient: n patient ids; None or an empty string for unknown, which joins nothing.
        duplicate_group: int (n,), from `duplicate_groups`.

    Returns:
        int64 (n,), 0 to g - 1, numbered in order of first appearance.

    Raises:
        UsageError: lengths that differ.
    """
    _check_lengths(patient=patient, duplicate_group=duplicate_group)
    n = len(patient)
    same_patient = first_with_same_value([name or None for name in patient])
    same_image = first_with_same_value([int(group) for group in duplicate_group])
    left = np.concatenate([same_patient, same_image])
    return connected_rows(n, np.stack([left, np.tile(np.arange(n), 2)], axis=1))


def check_leaks(
    split: Sequence[str | None],
    groups: NDArray[np.int64],
    pixel_hashes: Sequence[str | None],
) -> LeakReport:
    """Counts the groups and the pixel-identical images that are in more than one split.

    Args:
        split: n split names; None for scans that are in none.
        groups: int (n,).
        pixel_hashes: n digests; None for scans that could not be decoded.

    Returns:
        The counts; the caller decides whether to refuse.

    Raises:
        UsageError: lengths that differ.
    """
    _check_lengths(split=split, groups=groups, pixel_hashes=pixel_hashes)
    straddling_groups, group_rows = _straddling(split, [int(group) for group in groups])
    straddling_images, pixel_rows = _straddling(split, pixel_hashes)
    return LeakReport(straddling_groups, straddling_images, group_rows, pixel_rows)


def _straddling(
    split: Sequence[str | None], values: Sequence[str | int | None]
) -> tuple[int, dict[str, int]]:
    """Counts values that occur in several splits, and the rows of each split that hold one."""
    pairs = Counter((v, s) for v, s in zip(values, split, strict=True) if None not in (v, s))
    splits_of = Counter(value for value, _ in pairs)
    rows = dict.fromkeys(sorted({name for name in split if name is not None}), 0)
    for (value, name), count in pairs.items():
        rows[str(name)] += count if splits_of[value] > 1 else 0
    return sum(count > 1 for count in splits_of.values()), rows


def _assign_groups(
    counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Chooses a split for each group.

    Args:
        counts: int64 (groups, classes), scans of each class in each group.
        shares: float64 (splits,), summing to 1.
        rng: Shuffles the groups.

    Returns:
        int64 (groups,): number of the split.
    """
    shuffled = rng.permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    assigned = np.full(len(counts), -1, dtype=np.int64)
    target = shares[:, np.newaxis] * counts.sum(axis=0)
    missing = target.copy()
    _seed_splits(counts, order, assigned, missing)
    for group in order[assigned[order] < 0]:
        # The growth of sum((scans - target)^2 / target): absolute deficits alone would fill the
        # largest split first and leave it short of the classes whose groups are small.
        growth = ((counts[group] ** 2 - 2 * missing * counts[group]) / target).sum(axis=1)
        chosen = int(np.argmin(growth))
        assigned[group] = chosen
        missing[chosen] -= counts[group]
    return assigned


def _seed_splits(
    counts: NDArray[np.int64],
    order: NDArray[np.int64],
    assigned: NDArray[np.int64],
    missing: NDArray[np.float64],
) -> None:
    """Gives every split one group of every class, changing `assigned` and `missing`.

    By its share alone, the smallest split might get none of a rare class. Groups of a single class
    and classes with few groups go first, so that a group of several classes does not use up both.
    """
    held = counts > 0
    for kind in np.argsort(held.sum(axis=0), kind="stable"):
        candidates = order[::-1][held[order[::-1], kind]]
        candidates = candidates[np.argsort(held[candidates].sum(axis=1), kind="stable")]
        for split in np.argsort(missing[:, kind], kind="stable")[-len(candidates) :]:
            free = candidates[assigned[candidates] < 0]
            if len(free) and not held[assigned == split, kind].any():
                assigned[free[0]] = split
                missing[split] -= counts[free[0]]


def _class_counts(
    labels: Sequence[str | None], groups: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Counts the classes in each group; groups are numbered as they appear in `rows`."""
    classes, class_of_row = np.unique([str(labels[row]) for row in rows], return_inverse=True)
    seen: dict[int, int] = {}
    group_of_row = np.array(
        [seen.setdefault(int(groups[row]), len(seen)) for row in rows], np.int64
    )
    counts = np.zeros((len(seen), len(classes)), dtype=np.int64)
    np.add.at(counts, (group_of_row, class_of_row), 1)
    return classes.tolist(), counts, group_of_row


def _labeled_rows(
    labels: Sequence[str | None], keys: Sequence[str | int] | None
) -> NDArray[np.int64]:
    """Rows with a label, in the order of their keys."""
    order: Sequence[int] = range(len(labels))
    if keys is not None:
        if len(set(keys)) < len(keys):
            raise UsageError(f"{len(keys) - len(set(keys))} keys repeat; give one key per scan")
        order = sorted(order, key=lambda row: keys[row])
    return np.array([row for row in order if labels[row] is not None], dtype=np.int64)


def _checked_fractions(fractions: Mapping[str, float]) -> tuple[list[str], NDArray[np.float64]]:
    names = list(fractions)
    shares = np.array([fractions[name] for name in names], dtype=np.float64)
    shown = ", ".join(f"{name}={share:g}" for name, share in fractions.items())
    if len(names) == 0 or not (shares > 0).all():
        raise UsageError(f"fractions ({shown}) are not all positive; leave a split out instead")
    if abs(shares.sum() - 1) > 1e-6:
        raise UsageError(f"fractions ({shown}) sum to {shares.sum():g}; make them sum to 1")
    return names, shares


def _check_every_class_everywhere(
    classes: Sequence[str],
    names: Sequence[str],
    counts: NDArray[np.int64],
    assigned: NDArray[np.int64],
) -> None:
    for i, name in enumerate(classes):
        held = np.bincount(assigned[counts[:, i] > 0], minlength=len(names))
        if (held == 0).any():
            shown = ", ".join(f"{split}={n}" for split, n in zip(names, held, strict=True))
            raise UsageError(
                f"class {name} has {held.sum()} groups for {len(names)} splits ({shown}); "
                "add scans, use fewer splits, or allow missing classes"
            )


def _check_lengths(**columns: Sequence[object] | NDArray[np.int64] | None) -> None:
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UsageError(f"columns differ in length ({shown}); give one entry per scan")
