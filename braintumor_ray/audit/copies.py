"""Counts of copies: scans that are in the data twice, and on both sides of a boundary.

Keys and sides are small integers, -1 where unknown. Scans with the same key are copies (the same
bytes, the same pixels, the same group); copies should not be on two sides (splits, classes, data
sets). All is O(n log n) and vectorized: an audit may hold millions of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintumor_ray.types import Ints

SPLIT_ORDER = ("train", "val", "test")
KINDS = ("byte_identical", "pixel_identical", "near_identical")


@dataclass(frozen=True)
class Keys:
    """Keys by which two scans are copies, from the strictest to the loosest.

    Attributes:
        byte_identical: int64 (n,), same file content and frame; -1 for unreadable scans.
        pixel_identical: int64 (n,), same decoded pixels; -1 for unreadable scans.
        near_identical: int64 (n,), group of exact and near copies; -1 for unreadable scans.
    """

    byte_identical: Ints
    pixel_identical: Ints
    near_identical: Ints

    def of(self, kind: str) -> Ints:
        """The keys of one of `KINDS`."""
        keys: Ints = getattr(self, kind)
        return keys


def codes(values: Sequence[Any], first: Sequence[Any] = ()) -> tuple[list[Any], Ints]:
    """Distinct known values, those of `first` first, the others sorted; and each row's index.

    Returns:
        The values, and int64 (n,): the index of each row's value; -1 for None.
    """
    rank = {name: number for number, name in enumerate(first)}
    present = {value for value in values if value is not None}
    names = sorted(present, key=lambda name: (rank.get(name, len(rank)), name))
    index = {name: code for code, name in enumerate(names)}
    return names, np.array([index.get(value, -1) for value in values], dtype=np.int64)


def split_codes(values: Sequence[str | None]) -> tuple[list[str], Ints]:
    """As `codes`, in the order in which splits are used: train, val, test, then by name."""
    return codes(values, SPLIT_ORDER)


def readable_rows(scans: pa.Table) -> NDArray[np.bool_]:
    """Which audited scans could be decoded, bool (n,)."""
    return np.asarray(np.array(scans["status"]) == "ok", dtype=bool)


def surplus(keys: Ints) -> int:
    """Scans that would be removed if one of each key were kept."""
    known = keys[keys >= 0]
    return len(known) - len(np.unique(known))


def partner_before(keys: Ints, sides: Ints) -> Ints:
    """For each row the first row of the same key on the earliest side, if that side is earlier.

    With splits as sides these are the rows that were seen before: a test scan whose pixels are
    also in training.

    Returns:
        int64 (n,): the partner's row number, -1 where there is none.
    """
    partner = np.full(len(keys), -1, dtype=np.int64)
    rows = np.flatnonzero((keys >= 0) & (sides >= 0))
    if not len(rows):
        return partner
    order = rows[np.lexsort((rows, sides[rows], keys[rows]))]
    starts = np.flatnonzero(np.append(True, np.diff(keys[order]) != 0))
    first = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    earlier = sides[first] < sides[order]
    partner[order[earlier]] = first[earlier]
    return partner


def shared_rows(keys: Ints, sides: Ints, side: int, other: int) -> int:
    """Rows of one side whose key also occurs on another side."""
    there = np.unique(keys[(sides == other) & (keys >= 0)])
    return int(np.isin(keys[(sides == side) & (keys >= 0)], there).sum())


def mixed_keys(keys: Ints, sides: Ints) -> Ints:
    """Keys that occur on more than one known side, ascending."""
    known = (keys >= 0) & (sides >= 0)
    pairs = np.unique(np.stack([keys[known], sides[known]], axis=1), axis=0)
    found, count = np.unique(pairs[:, 0], return_counts=True)
    return found[count > 1]


def conflicting_rows(keys: Ints, labels: Ints, datasets: Ints) -> NDArray[np.bool_]:
    """Rows whose key has more than one label inside their data set, bool (n,)."""
    inside = np.where(keys >= 0, keys * (datasets.max(initial=0) + 1) + datasets, -1)
    return (keys >= 0) & np.isin(inside, mixed_keys(inside, labels))


def across(keys: Keys, sides: Ints, names: Sequence[str]) -> list[dict[str, Any]]:
    """For every ordered pair of sides, the rows of the later whose key is also on the earlier."""
    return [
        {
            "side": names[later],
            "also_in": names[earlier],
            "rows": int((sides == later).sum()),
            **{kind: shared_rows(keys.of(kind), sides, later, earlier) for kind in KINDS},
        }
        for later in range(len(names))
        for earlier in range(later)
    ]


def within(keys: Keys, sides: Ints, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Surplus copies inside each side."""
    return {
        name: {kind: surplus(keys.of(kind)[sides == code]) for kind in KINDS}
        for code, name in enumerate(names)
    }
