"""Drawing on a white page: crisp text, outlines and tiles, shared by the overlay pictures."""

from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RGB = NDArray[np.uint8]
Box = tuple[float, float, float, float]
Ink = tuple[int, int, int]

# Pixels. A cell is never so narrow that the footer's two notes would meet.
CELL_MIN, MARGIN, GAP, BAR = 280, 20, 14, 16
TITLE, LABEL, NOTE = 24, 15, 13
INK, GREY, LINE, PAPER = (24, 24, 27), (98, 98, 105), (190, 190, 195), (255, 255, 255)


class Page(NamedTuple):
    """A white page with room for a title, rows of labelled tiles, a colour bar and a footer."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    top: int
    cell_width: int
    tile_height: int

    @classmethod
    def blank(cls, rows: int, columns: int, tile: tuple[int, ...], has_truth: bool) -> "Page":
        """Make the page for `rows` x `columns` tiles of shape `tile` (height, width)."""
        height, width = tile[:2]
        cell = max(width, CELL_MIN)
        top = MARGIN + TITLE + 14 + (LABEL + 10 if has_truth else 0)
        size = (
            2 * MARGIN + columns * (cell + GAP) + BAR + 34,
            top + rows * (LABEL + 10 + height + GAP) + NOTE + MARGIN,
        )
        image = Image.new("RGB", size, PAPER)
        return cls(image, ImageDraw.Draw(image), top, cell, height)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Top left of a cell's tile, below its label."""
        x = MARGIN + column * (self.cell_width + GAP)
        return x, self.top + row * (self.tile_height + LABEL + 10 + GAP) + LABEL + 10

    def text(self, at: tuple[int, int], text: str, size: int, ink: Ink, anchor: str = "ls") -> int:
        """Write at a baseline; returns the x where the text ends."""
        font = font_for(size, text)
        self.draw.text(at, text, ink, font, anchor)
        return at[0] + round(font.getlength(text))


def outlines_on(
    shape: tuple[int, ...], mask: NDArray[Any] | None, box: Box | None
) -> list[NDArray[Any]]:
    """Contours of a mask and of a box, in pixels of a tile of `shape` (height, width)."""
    outlines: list[NDArray[Any]] = []
    if mask is not None:
        outlines.extend(_mask_outlines(shape, mask))
    if box is not None:
        last = np.array([shape[1] - 1, shape[0] - 1] * 2)
        left, top, right, bottom = np.rint(np.array(box) * last).astype(np.int32)
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        outlines.append(np.array(corners, np.int32).reshape(-1, 1, 2))
    return outlines


def outlined(rgb: RGB, outlines: list[NDArray[Any]]) -> RGB:
    """Draw contours in white on a black halo: seen on every colour of every map."""
    drawn = rgb.copy()
    cv2.drawContours(drawn, outlines, -1, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.drawContours(drawn, outlines, -1, (255, 255, 255), 1, cv2.LINE_AA)
    return drawn


def fit(picture: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Scale a picture so that its longest side is `longest` pixels; the aspect stays."""
    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, size, interpolation=method)


def as_rgb(picture: NDArray[np.uint8]) -> RGB:
    """Gray (H, W) or RGB (H, W, 3) as RGB."""
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture


def shortened(text: str, size: int, room: int) -> str:
    """Cut the end of a text, with dots, so that it is at most `room` pixels wide."""
    font = font_for(size, text)
    if font.getlength(text) <= room:
        return text
    kept = len(text)
    while kept > 1 and font.getlength(text[:kept].rstrip() + "...") > room:
        kept -= 1
    return text[:kept].rstrip() + "..."


def font_for(size: int, text: str) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels that has the text's letters."""
    return _load_font(size, text.isascii())


@lru_cache(maxsize=32)
def _load_font(size: int, ascii_only: bool) -> ImageFont.FreeTypeFont:
    # Pillow's own font has no letters beyond ASCII that can be relied on; matplotlib's has.
    if not ascii_only:
        import matplotlib

        return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # load_default(size) gives no bitmap font
    return font


def _mask_outlines(shape: tuple[int, ...], mask: NDArray[Any]) -> list[NDArray[Any]]:
    # Scaled smoothly, cut at a half: nearest would leave stairs along the outline.
    smooth = cv2.resize((mask != 0).astype(np.float32), (shape[1], shape[0]))
    inside = (smooth >= 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return list(contours)
