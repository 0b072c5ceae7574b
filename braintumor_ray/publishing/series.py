"""Rows by their series, and the maps of a series: for `publish --map-per series`.

A viewer that lays a map over a series wants one object with a frame for each slice. It holds the
slices that are published together. Those of a later night, or that were refused before, make an
object of their own, so that no object on the server is ever changed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
from pydicom.dataset import Dataset

from braintumor_ray.publishing.objects import Frame, series_maps
from braintumor_ray.publishing.rows import Chosen

_DIGITS = 3  # of cosines and mm, in which slices of one geometry agree


def by_series(rows: Iterable[Chosen]) -> Iterator[list[Chosen]]:
    """Rows that follow each other in one generation, series by series.

    The rows of a generation are in memory, about 3 KB each. A row without a series is alone.
    """
    for _, run in groupby(rows, key=lambda row: row.generation):
        found: dict[object, list[Chosen]] = {}
        for row in run:
            found.setdefault(row.scored.row.get("series_key") or row.scan_id, []).append(row)
        yield from found.values()


def maps_of(frames: Sequence[Frame]) -> dict[str, Dataset]:
    """Maps of the slices of a series, one of each method for each geometry.

    Slices of one position, such as echoes, are in maps of their own.

    Raises:
        Refused, UsageError: see `objects.derived_objects`.
    """
    groups: dict[object, list[Frame]] = {}
    seen: Counter[object] = Counter()
    for frame in sorted(frames, key=lambda each: (each[1].header.SOPInstanceUID, each[1].frame)):
        geometry = _geometry(frame)
        place = (geometry, tuple(np.round(frame[1].position, _DIGITS)))
        groups.setdefault((geometry, seen[place]), []).append(frame)
        seen[place] += 1
    made = {}
    for group in groups.values():
        for name, each in series_maps(group).items():
            made[f"series_{str(each.SOPInstanceUID)[-16:]}/{name}"] = each
    return made


def _geometry(frame: Frame) -> tuple[object, ...]:
    """What all frames of a map share."""
    scored, source = frame
    numbers = (*source.orientation, *source.spacing, source.thickness)
    return (
        source.header.SeriesInstanceUID,
        source.header.FrameOfReferenceUID,
        source.gray.shape,
        tuple(scored.cams),
        scored.fingerprint,
        # Of a multi-frame object, highdicom takes one as source.
        source.header.SOPInstanceUID if source.is_multiframe else None,
        tuple(np.round(numbers, _DIGITS)),
    )
