"""Compare sheets: a row for each scan, a column for each picture of it, all cells of one size."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from braintumor_ray.decode.head import head_mask
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.overlay import (
    DISCLAIMER,
    GAP,
    GRAY,
    INK,
    LABEL,
    MARGIN,
    METHOD_LABELS,
    NO_HEAD,
    NOTE,
    PAPER,
    RGB,
    as_rgb,
    colorize,
    drawn_heatmap,
    fit,
    font_for,
    inside_only,
    superimpose,
    wrapped,
)

ROWS, CELL = 20, 200  # scans on a sheet; pixels of a cell's side
_NAME = 220  # pixels of the column of names
_HEAD, _LINE = LABEL + 12, NOTE + 8


class SheetRow(NamedTuple):
    """A row of a compare sheet.

    Attributes:
        name: the file's.
        note: further lines: what is predicted, and what the label is.
        gray: the scan, uint8 (H, W).
        cams: raw map (h, w) by method or label.
    """

    name: str
    note: str
    gray: NDArray[np.uint8]
    cams: Mapping[str, NDArray[Any]]


def compare_sheet(
    rows: list[SheetRow], *, alpha: float = 0.4, colormap: str = "jet", mask_head: bool = False
) -> RGB:
    """Draw scans below each other: scan, heatmap and overlay of each map, and the difference.

    Of two maps there are six columns: the scan, two heatmaps, two overlays, and the second heatmap
    less the first (red: more, blue: less). Of one map there are three, of more only overlays.

    Args:
        rows: at most `ROWS` scans, with the same labels of maps.
        alpha: as for `explain.overlay.panel`.
        colormap: as there.
        mask_head: as there; a row whose scan shows no head tells so.

    Returns:
        uint8 (H, W, 3), RGB, white.

    Raises:
        UsageError: no rows or too many.
    """
    if not 0 < len(rows) <= ROWS:
        raise UsageError(f"{len(rows)} scans on a compare sheet; pass 1 to {ROWS}")
    heads = [head_mask(fit(row.gray, CELL)) if mask_head else None for row in rows]
    drawn = [_cells(row, alpha, colormap, head) for row, head in zip(rows, heads, strict=True)]
    titles = [wrapped(label, NOTE, CELL) for label in drawn[0]]
    lines = max(map(len, titles))
    head = _HEAD + (lines - 1) * _LINE
    width = 2 * MARGIN + _NAME + len(titles) * (CELL + GAP) - GAP
    height = 2 * MARGIN + head + len(rows) * (CELL + GAP) + NOTE
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        for line, text in enumerate(title, start=lines - len(title)):
            pen.text((_left(column), MARGIN + line * _LINE), text, INK, font_for(NOTE, text))
    for index, (row, cells) in enumerate(zip(rows, drawn, strict=True)):
        top = MARGIN + head + index * (CELL + GAP)
        headless = mask_head and heads[index] is None
        _write_name(pen, row.name, f"{row.note}\n{NO_HEAD}" if headless else row.note, top)
        for column, picture in enumerate(cells.values()):
            high, wide = picture.shape[:2]
            at = (_left(column) + (CELL - wide) // 2, top + (CELL - high) // 2)
            sheet.paste(Image.fromarray(picture), at)
    note = "each map stretched to its own 0 to 1"
    note += "; heat inside the head only" if mask_head else ""
    text = f"{note}; {DISCLAIMER}"
    pen.text((MARGIN, height - MARGIN - NOTE), text, GRAY, font_for(NOTE, text))
    return np.array(sheet)


def _left(column: int) -> int:
    return MARGIN + _NAME + column * (CELL + GAP)


def _write_name(pen: ImageDraw.ImageDraw, name: str, note: str, top: int) -> None:
    written = [(name, INK), *((text, GRAY) for text in note.split("\n"))]
    lines = [(line, ink) for text, ink in written for line in wrapped(text, NOTE, _NAME - GAP)]
    for number, (line, ink) in enumerate(lines):
        pen.text((MARGIN, top + number * _LINE), line, ink, font_for(NOTE, line))


def _cells(
    row: SheetRow, alpha: float, colormap: str, head: NDArray[np.uint8] | None
) -> dict[str, RGB]:
    """The pictures of a scan by label, each at most `CELL` a side."""
    tile = fit(row.gray, CELL)
    names = {label: METHOD_LABELS.get(label, label) for label in row.cams}
    shape = (tile.shape[0], tile.shape[1])
    heats = {names[label]: drawn_heatmap(cam, shape, head) for label, cam in row.cams.items()}
    cells = {"scan": as_rgb(tile)}
    if len(heats) <= 2:
        cells |= {
            f"{name} heatmap": inside_only(colorize(heat, colormap), head)
            for name, heat in heats.items()
        }
    for name, heat in heats.items():
        cells[f"{name} on scan"] = inside_only(
            superimpose(tile, heat, alpha, colormap), head, as_rgb(tile)
        )
    if len(heats) == 2:
        first, second = heats.values()
        cells["second less first (green: same)"] = colorize((second - first + 1) / 2, "jet")
    return cells
