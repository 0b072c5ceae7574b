"""File formats of boxes and outlines: CSV, YOLO, VIA."""

import csv
import io
import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from braintumor_ray.localization.outlines import (
    Outlines,
    Points,
    TruthError,
    checked_polygon,
    ellipse,
    rectangle,
)

BOX_COLUMNS = ("x_min", "y_min", "x_max", "y_max")


def box_outlines(text: str, location: str) -> dict[str, Outlines]:
    """Boxes per path from a CSV with columns path, x_min, y_min, x_max, y_max.

    Args:
        text: the table; fractions of width and height, several rows per path allowed.
        location: where it is from, for messages.

    Raises:
        TruthError: a column is missing, there is no row, or a box is not valid.
    """
    rows = csv.DictReader(io.StringIO(text))
    missing = [name for name in ("path", *BOX_COLUMNS) if name not in (rows.fieldnames or ())]
    if missing:
        raise TruthError(
            f"'{location}' lacks column '{missing[0]}'; boxes have columns path, "
            f"{', '.join(BOX_COLUMNS)}, in fractions of width and height"
        )
    polygons: dict[str, list[Points]] = defaultdict(list)
    for row in rows:
        where = f"line {rows.line_num} of '{location}'"
        box = _numbers([row[name] for name in BOX_COLUMNS], where)
        path = posixpath.normpath((row["path"] or "").strip().replace("\\", "/"))
        polygons[path].append(_box_points(box, where))
    if not polygons:
        raise TruthError(f"'{location}' has no boxes")
    return {path: Outlines(tuple(boxes), in_pixels=False) for path, boxes in polygons.items()}


def of_boxes(boxes: Iterable[Sequence[float]], where: str) -> Outlines:
    """Boxes (x_min, y_min, x_max, y_max) of one scan, in fractions.

    Raises:
        TruthError: one is not valid.
    """
    return Outlines(tuple(_box_points(box, where) for box in boxes), in_pixels=False)


def _box_points(box: Sequence[float], where: str) -> Points:
    x_min, y_min, x_max, y_max = box
    if not (0 <= x_min < x_max <= 1 and 0 <= y_min < y_max <= 1):
        raise TruthError(
            f"{where}: box {tuple(box)} is not x_min < x_max, y_min < y_max in fractions from "
            "0 to 1; divide pixels by the scan's width and height"
        )
    return rectangle(x_min, y_min, x_max, y_max)


def yolo_outlines(text: str, location: str) -> Outlines:
    """Boxes or polygons of one scan from a YOLO label file; an empty file: no tumor.

    Args:
        text: lines of `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`, fractions.
        location: where it is from, for messages.

    Raises:
        TruthError: a line is not valid.
    """
    polygons = tuple(
        _yolo_polygon(line, f"line {number} of '{location}'")
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    )
    return Outlines(polygons, in_pixels=False)


def _yolo_polygon(line: str, where: str) -> Points:
    values = _numbers(line.split(), where)[1:]
    if not values or min(values) < 0 or max(values) > 1:
        raise TruthError(f"{where}: '{line.strip()[:60]}' is not a class and fractions from 0 to 1")
    if len(values) == 4:
        cx, cy, width, height = values
        return rectangle(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    if len(values) % 2:
        raise TruthError(
            f"{where} has {len(values)} numbers after the class; a box has 4 (a fifth, the "
            "confidence, is of predictions, not of truth), a polygon x y pairs"
        )
    return checked_polygon(np.reshape(values, (-1, 2)), where)


def _numbers(values: Iterable[str | None], where: str) -> list[float]:
    try:
        return [float(value or "") for value in values]
    except ValueError as error:
        raise TruthError(f"{where} has a value that is not a number: {error}") from error


def via_outlines(text: str, location: str) -> dict[str, Outlines]:
    """Outlines per file name from VGG Image Annotator's JSON (VIA 1 and 2).

    Both a whole project (`_via_img_metadata`) and exported annotations are read. Every region
    counts as tumor, whatever its attributes are.

    Args:
        text: the JSON.
        location: where it is from, for messages.

    Raises:
        TruthError: it is not JSON or not VIA's, a region has no area (point, polyline) or lacks a
            coordinate, or a file is listed twice.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise TruthError(f"'{location}' is not JSON: {error}") from error
    entries = raw.get("_via_img_metadata", raw) if isinstance(raw, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise TruthError(f"'{location}' holds no VIA annotations; export them as JSON from VIA")
    found: dict[str, Outlines] = {}
    for key, entry in entries.items():
        if not isinstance(entry, dict) or not {"filename", "regions"} <= entry.keys():
            raise TruthError(
                f"entry '{key}' of '{location}' has no filename and regions; export the "
                "annotations as JSON from VIA (not COCO)"
            )
        name = str(entry["filename"]).replace("\\", "/")
        if name in found:
            raise TruthError(f"'{location}' lists '{name}' twice; keep one entry for each file")
        regions = entry["regions"]
        shapes = list(regions.values() if isinstance(regions, dict) else regions)
        polygons = tuple(
            _via_polygon(shape, f"region {number} of '{name}' in '{location}'")
            for number, shape in enumerate(shapes, start=1)
        )
        found[name] = Outlines(polygons, in_pixels=True)
    return found


def _via_polygon(region: Any, where: str) -> Points:  # noqa: ANN401 - parsed JSON
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict) or "name" not in shape:
        raise TruthError(f"{where} has no shape_attributes with a name; draw it again in VIA")
    name = shape["name"]
    if name not in _VIA_SHAPES:
        raise TruthError(f"{where} is a '{name}', which has no area; use {', '.join(_VIA_SHAPES)}")
    try:
        polygon = _VIA_SHAPES[name](shape)
    except KeyError as error:
        raise TruthError(f"{where} lacks {error}; draw it again in VIA") from error
    except (TypeError, ValueError) as error:
        raise TruthError(f"{where} is not a valid region: {error}; draw it again in VIA") from error
    return checked_polygon(polygon, where)


def _via_rect(shape: Mapping[str, Any]) -> Points:
    x, y, width, height = (float(shape[name]) for name in ("x", "y", "width", "height"))
    return rectangle(x, y, x + width, y + height)


def _via_ellipse(shape: Mapping[str, Any]) -> Points:
    """An ellipse, or a circle, which has one radius and no angle."""
    radii = ("r", "r") if shape["name"] == "circle" else ("rx", "ry")
    cx, cy, rx, ry = (float(shape[name]) for name in ("cx", "cy", *radii))
    return ellipse(cx, cy, rx, ry, float(shape.get("theta", 0.0)))


def _via_points(shape: Mapping[str, Any]) -> Points:
    xs, ys = shape["all_points_x"], shape["all_points_y"]
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} x for {len(ys)} y")
    return np.array([xs, ys], np.float64).T


_VIA_SHAPES = {
    "polygon": _via_points,
    "ellipse": _via_ellipse,
    "circle": _via_ellipse,
    "rect": _via_rect,
}
