"""Pictures of pairs of scans that are copies where they should not be."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from braintumor_ray.audit.copies import Keys, codes, conflicting_rows, partner_before, split_codes
from braintumor_ray.explain.overlay import contact_sheet
from braintumor_ray.pages.names import scan_name
from braintumor_ray.pages.pictures import Picture, jpeg_uri, load_pictures, side_by_side, spread
from braintumor_ray.types import Ints

TILE = 200
SHOWN = 36  # pairs in all

CONFLICT = "copies with different labels"
ACROSS_SPLITS = "the same pixels in two splits"
NEAR_ACROSS_SPLITS = "near copies in two splits"
ACROSS_DATASETS = "copies in two data sets"
WITHIN = "copies within a split"


@dataclass(frozen=True)
class Pair:
    """Two rows of the audited scans, and what is wrong with them."""

    fault: str
    first: int
    second: int


def find_pairs(scans: pa.Table, keys: Keys) -> list[Pair]:
    """Choose pairs to show: some of every kind of fault, the most serious first.

    Args:
        scans: from `audit.combine`.
        keys: from `audit.copy_keys`.
    """
    splits = split_codes(scans["split"].to_pylist())[1]
    labels = codes(scans["label"].to_pylist())[1]
    datasets = codes(scans["dataset"].to_pylist())[1]
    pixels, near = keys.pixel_identical, keys.near_identical
    same_pixels = partner_before(pixels, splits)
    near_only = np.where(same_pixels >= 0, -1, partner_before(near, splits))
    disputed = np.where(conflicting_rows(near, labels, datasets), near, -1)
    found = {
        CONFLICT: partner_before(disputed, labels),
        ACROSS_SPLITS: same_pixels,
        NEAR_ACROSS_SPLITS: near_only,
        ACROSS_DATASETS: partner_before(near, datasets),
        WITHIN: _within(pixels, splits),
    }
    return _shared_out(_one_per_group(found, near), SHOWN)


def draw_pairs(scans: pa.Table, pairs: list[Pair]) -> tuple[list[dict[str, Any]], Picture | None]:
    """Read the scans of the pairs once more and lay them side by side.

    Returns:
        Tiles for a page (`image`, `fault`, `first`, `second`), and one sheet of all; None where
        there is nothing to draw.
    """
    if not pairs:
        return [], None
    rows = [row for pair in pairs for row in (pair.first, pair.second)]
    pictures = load_pictures(scans.take(rows), TILE)
    tiles: list[dict[str, Any]] = []
    drawn: list[Picture] = []
    for index, pair in enumerate(pairs):
        both = [picture for picture in pictures[2 * index : 2 * index + 2] if picture is not None]
        if len(both) < 2:
            continue  # deleted since it was read
        drawn.append(side_by_side(both))
        first, second = (_describe(scans, row) for row in (pair.first, pair.second))
        tiles.append(
            {"image": jpeg_uri(drawn[-1]), "fault": pair.fault, "first": first, "second": second}
        )
    captions = [f"{tile['fault']}: {scan_name(tile['first'])}" for tile in tiles]
    return tiles, contact_sheet(drawn, 3, captions) if drawn else None


def _within(keys: Ints, splits: Ints) -> Ints:
    """For each row the first row with the same key and split, where that is another one."""
    both = np.where(keys >= 0, keys * (splits.max(initial=0) + 2) + splits + 1, -1)
    return partner_before(both, np.arange(len(keys)))


def _one_per_group(found: dict[str, Ints], groups: Ints) -> dict[str, Ints]:
    """Keep one pair of each group of copies, under its most serious fault."""
    shown = np.empty(0, np.int64)
    kept = {}
    for fault, partner in found.items():
        rows = np.flatnonzero((partner >= 0) & ~np.isin(groups, shown))
        seen, first = np.unique(groups[rows], return_index=True)
        kept[fault] = np.full(len(partner), -1)
        kept[fault][rows[first]] = partner[rows[first]]
        shown = np.concatenate([shown, seen])
    return kept


def _shared_out(found: dict[str, Ints], most: int) -> list[Pair]:
    """Take from each kind in turn until there are enough; each kind's spread over the data."""
    rows = {fault: np.flatnonzero(partner >= 0) for fault, partner in found.items()}
    taken = dict.fromkeys(rows, 0)
    room = min(most, sum(map(len, rows.values())))
    while sum(taken.values()) < room:
        for fault, those in rows.items():
            taken[fault] += taken[fault] < len(those) and sum(taken.values()) < room
    return [
        Pair(fault, int(found[fault][row]), int(row))
        for fault, count in taken.items()
        for row in spread(rows[fault], count)
    ]


def _describe(scans: pa.Table, row: int) -> dict[str, Any]:
    names = ("path", "frame", "label", "split", "dataset")
    return {name: scans[name][row].as_py() for name in names}
