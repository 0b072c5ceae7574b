"""Pictures of class activation maps: upsampled, stretched and colored only when they are drawn.

Stored maps are raw. `heatmap_at` is the only place where one is normalized, after upsampling;
`drawn_heatmap` makes its result smooth for pictures.
"""

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from braintumor_ray.decode.head import head_mask
from braintumor_ray.errors import UsageError
from braintumor_ray.types import FractionBox

RGB = NDArray[np.uint8]
Ink = tuple[int, int, int]

# Pixels. A cell is never so narrow that the footer's two notes would meet.
CELL_MIN, MARGIN, GAP, BAR = 280, 20, 14, 16
TITLE, LABEL, NOTE = 24, 15, 13
INK, GRAY, LINE, PAPER = (24, 24, 27), (98, 98, 105), (190, 190, 195), (255, 255, 255)


class Verdict(NamedTuple):
    """The tumor decision of a scan, for its panel.

    Attributes:
        positive: as decided.
        probability: summed over the positive classes.
        threshold: that the decision compares it with.
        right: whether the truth is the same; None: not known.
    """

    positive: bool
    probability: float
    threshold: float
    right: bool | None = None

    def __str__(self) -> str:
        word, relation = ("positive", "reaches") if self.positive else ("negative", "is below")
        return f"{word}: tumor {self.probability:.1%} {relation} {self.threshold:.1%}"


class OverlayPage(NamedTuple):
    """A white page with room for a title, rows of labeled tiles, a color bar and a footer."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    top: int
    cell_width: int
    tile_height: int

    @classmethod
    def blank(cls, rows: int, columns: int, tile: tuple[int, ...], lines: int) -> "OverlayPage":
        """Make the page for `rows` x `columns` tiles of shape `tile` (height, width).

        Args:
            rows: of tiles.
            columns: of tiles.
            tile: shape of one.
            lines: of small text below the title.
        """
        height, width = tile[:2]
        cell = max(width, CELL_MIN)
        top = MARGIN + TITLE + 14 + lines * (LABEL + 10)
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
    shape: tuple[int, ...], mask: NDArray[Any] | None, box: FractionBox | None
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
    """Draw contours in white on a black halo: seen on every color of every map."""
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
    """Put dots in place of a text's middle, so that it is at most `room` pixels wide.

    Names of classes and files often differ only at their ends.
    """
    font = font_for(size, text)
    if font.getlength(text) <= room:
        return text
    kept = len(text)
    while kept > 1 and font.getlength(_ends(text, kept)) > room:
        kept -= 1
    return _ends(text, kept)


def _ends(text: str, kept: int) -> str:
    last = kept // 3
    return f"{text[: kept - last].rstrip()}...{text[len(text) - last :].lstrip()}"


def wrapped(text: str, size: int, room: int) -> list[str]:
    """One or two lines of at most `room` pixels: the first is as long as whole words allow.

    Words end at spaces, and after the underscores, hyphens and slashes of names. What is too long
    for two lines is `shortened`.
    """
    font = font_for(size, text)
    if font.getlength(text) <= room:
        return [text]
    ends = [match.end() for match in re.finditer(r"[\s_/-]+", text)]
    fitting = [end for end in ends if font.getlength(text[:end].rstrip()) <= room]
    if not fitting:
        return [shortened(text, size, room)]
    return [text[: fitting[-1]].rstrip(), shortened(text[fitting[-1] :], size, room)]


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


DISCLAIMER = "research software, not a medical device"
NO_HEAD = "no head found, all heat drawn"
METHOD_LABELS = {
    "gradcam": "Grad-CAM",
    "gradcam_pp": "Grad-CAM++",
    "xgradcam": "XGrad-CAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "eigencam": "Eigen-CAM",
    "scorecam": "Score-CAM",
    "gradcam_abs": "Grad-CAM of |gradients| (notebook)",
    "gradcam_loss": "Grad-CAM of the loss (notebook)",
}
COLORMAPS = {
    name: getattr(cv2, f"COLORMAP_{name.upper()}")
    for name in ("jet", "turbo", "inferno", "viridis", "magma", "plasma", "cividis", "hot")
}
# A range below this share of the peak is float16 rounding of a constant map, not a pattern.
FLAT_RANGE = 1e-3
BLUR_CELLS = 0.4  # standard deviation of the blur that hides the grid of cells
TILE_SIZE = 320
_RIGHT, _WRONG = (22, 120, 60), (185, 28, 28)


def heatmap_at(cam: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Upsample a raw map to an image's size, then stretch it to [0, 1].

    Bilinear with align_corners=False, as `torch.nn.functional.interpolate`; the stretch comes
    after, as in the grad-cam library. A map without a pattern (all zero, or constant up to
    float16 rounding) gives zeros.

    Args:
        cam: raw map (h, w), any float dtype.
        shape: (H, W) of the image.

    Returns:
        float32 (H, W) in [0, 1].

    Raises:
        UsageError: `cam` is not a two-dimensional array of finite numbers.
    """
    heat = upsampled(cam, shape)
    low, high = float(heat.min()), float(heat.max())
    if high - low <= FLAT_RANGE * max(abs(low), abs(high)):
        return np.zeros(shape, np.float32)
    return (heat - np.float32(low)) / np.float32(high - low)


def upsampled(cam: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """A raw map at an image's size, in its own values: bilinear, align_corners=False.

    Args:
        cam: raw map (h, w), any float dtype.
        shape: (H, W) of the image.

    Returns:
        float32 (H, W).

    Raises:
        UsageError: `cam` is not a two-dimensional array of finite numbers.
    """
    if cam.ndim != 2 or cam.size == 0:
        raise UsageError(f"a map of shape {cam.shape} cannot be drawn; pass one map (h, w)")
    if not np.isfinite(cam).all():
        raise UsageError("a map with NaN or infinite values cannot be drawn; compute it again")
    height, width = shape
    raw = np.ascontiguousarray(cam, dtype=np.float32)
    return np.asarray(cv2.resize(raw, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def drawn_heatmap(
    cam: NDArray[Any], shape: tuple[int, int], head: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """`heatmap_at` for people: smooth, and inside the head only where one is given.

    Bilinear upsampling of a few cells shows diamonds and crosses, which are no findings. A blur of
    less than half a cell removes them, does not move a peak by a cell, and cannot overshoot, as
    cubic interpolation does. Figures are measured on `heatmap_at`.

    Args:
        cam: raw map (h, w), any float dtype.
        shape: (H, W) of the image.
        head: (H, W), not zero inside the head: heat elsewhere is left out before the stretch.

    Returns:
        float32 (H, W) in [0, 1].

    Raises:
        UsageError: as `heatmap_at`.
    """
    heat = heatmap_at(cam, shape)
    sigmas = [BLUR_CELLS * size / cells for size, cells in zip(shape, cam.shape, strict=True)]
    if min(sigmas) > 0.5:  # else cells are hardly larger than pixels
        heat = cv2.GaussianBlur(
            heat, (0, 0), sigmas[1], sigmaY=sigmas[0], borderType=cv2.BORDER_REPLICATE
        )
    if head is not None:
        heat = np.where(head != 0, heat, np.float32(0))
    peak, low = float(heat.max()), float(heat.min())
    return (heat - np.float32(low)) / np.float32(peak - low) if peak > low else heat


def colorize(heatmap: NDArray[Any], colormap: str = "jet") -> RGB:
    """Color a heatmap.

    Args:
        heatmap: (H, W) in [0, 1]; values outside are clipped.
        colormap: a name in `COLORMAPS`; inferno, viridis and cividis are perceptually even.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        UsageError: the color map is unknown.
    """
    if colormap not in COLORMAPS:
        raise UsageError(f"unknown color map {colormap!r}; choose one of {', '.join(COLORMAPS)}")
    levels = np.rint(np.clip(heatmap, 0.0, 1.0) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, COLORMAPS[colormap]), cv2.COLOR_BGR2RGB)


def superimpose(
    gray: NDArray[np.uint8], heatmap: NDArray[Any], alpha: float = 0.4, colormap: str = "jet"
) -> RGB:
    """Blend a colored heatmap over its scan: (1 - alpha) scan + alpha color.

    A map covers the whole scan, because the network saw the whole scan, squashed.

    Args:
        gray: uint8 (H, W).
        heatmap: (H, W) in [0, 1], from `heatmap_at(cam, gray.shape)`.
        alpha: share of the color, 0 to 1.
        colormap: a name in `COLORMAPS`.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        UsageError: the scan is not uint8 (H, W), the sizes differ, alpha is outside [0, 1] or
            the color map is unknown.
    """
    _check_scan(gray)
    if gray.shape != heatmap.shape:
        raise UsageError(
            f"scan {gray.shape} and heatmap {heatmap.shape} differ in size; "
            "use heatmap_at(cam, gray.shape)"
        )
    if not 0.0 <= alpha <= 1.0:
        raise UsageError(f"alpha={alpha} is not a share; choose a number from 0 to 1")
    scan = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(scan, 1.0 - alpha, colorize(heatmap, colormap), alpha, 0.0)


def panel(
    gray: NDArray[np.uint8],
    cams: Mapping[str, NDArray[Any]],
    *,
    predicted: str,
    probability: float,
    true_class: str | None = None,
    layout: str = "full",
    alpha: float = 0.4,
    colormap: str = "jet",
    mask: NDArray[Any] | None = None,
    box: FractionBox | None = None,
    mask_head: bool = False,
    verdict: Verdict | None = None,
) -> RGB:
    """Draw one scan's explanation as a captioned picture on white.

    Args:
        gray: the scan, uint8 (H, W), any size; tiles keep its aspect.
        cams: raw map (h, w) per method, drawn in this order.
        predicted: the likeliest class.
        probability: its probability, 0 to 1.
        true_class: the label where it is known; the likeliest class is marked right or wrong.
        layout: "full" = a row per method: scan, heatmap, overlay; "compact" = one row: the scan
            and one overlay per method.
        alpha: share of the color in the overlays.
        colormap: a name in `COLORMAPS`.
        mask: tumor mask (H, W), outlined where it is not zero.
        box: tumor box (x_min, y_min, x_max, y_max) as fractions of width and height.
        mask_head: draw heat inside the head only, and write so; where no head is found, all of it.
        verdict: the tumor decision, on a line of its own.

    Returns:
        uint8 (rows, columns, 3), RGB.

    Raises:
        UsageError: no map, an unknown layout, a mask of another size than the scan, or a box
            that is not given in fractions.
    """
    _check_scan(gray)
    if layout not in ("full", "compact"):
        raise UsageError(f"unknown layout {layout!r}; choose 'full' or 'compact'")
    if not cams:
        raise UsageError("no maps to draw; pass at least one method, e.g. {'gradcam': cam}")
    if mask is not None and mask.shape != gray.shape:
        raise UsageError(f"mask {mask.shape} and scan {gray.shape} differ; pass them at one size")
    if box is not None and not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise UsageError(
            f"box {box} is not (x_min, y_min, x_max, y_max) in fractions of width and height; "
            "divide pixels by the scan's width and height"
        )
    tile = fit(gray, TILE_SIZE)
    marks = outlines_on(tile.shape, mask, box)
    head = head_mask(tile) if mask_head else None
    rows = _tile_rows(tile, cams, layout, alpha, colormap, head)
    lines = (true_class is not None) + (verdict is not None)
    page = OverlayPage.blank(len(rows), len(rows[0]), (TILE_SIZE, TILE_SIZE), lines)
    _draw_title(page, predicted, probability, true_class, verdict)
    for row, cells in enumerate(rows):
        for column, (label, rgb) in enumerate(cells):
            _draw_cell(page, row, column, label, outlined(rgb, marks))
        _draw_color_bar(page, row, len(cells), colormap)
    _draw_footer(page, has_outline=bool(marks), mask_head=mask_head, has_head=head is not None)
    return np.array(page.image)


def tiles_of(
    gray: NDArray[np.uint8], cams: Mapping[str, NDArray[Any]], mask: NDArray[Any] | None = None
) -> list[RGB]:
    """The scan and an overlay per method without any text, for pages that have captions.

    Args:
        gray: the scan, uint8 (H, W).
        cams: raw map (h, w) per method.
        mask: tumor mask (H, W), outlined where it is not zero.

    Returns:
        uint8 (h, w, 3), RGB, of one size each.

    Raises:
        UsageError: the scan is not uint8 (H, W).
    """
    _check_scan(gray)
    tile = fit(gray, TILE_SIZE)
    marks = outlines_on(tile.shape, mask, None)
    (cells,) = _tile_rows(tile, cams, "compact", 0.4, "jet", None)
    return [outlined(rgb, marks) for _, rgb in cells]


def contact_sheet(
    tiles: Sequence[NDArray[np.uint8]],
    columns: int,
    captions: Sequence[str] | None = None,
    tile_size: int | None = None,
) -> RGB:
    """Lay out many pictures in a grid, row by row, each centered in a cell of equal size.

    Args:
        tiles: uint8 pictures, gray (H, W) or RGB (H, W, 3); sizes may differ.
        columns: pictures per row.
        captions: what is written under each picture; a line that is too long is shortened.
        tile_size: longest side in pixels to which each picture is scaled; None leaves them.

    Returns:
        uint8 (rows, columns, 3), RGB.

    Raises:
        UsageError: no pictures, columns < 1, or another number of captions than pictures.
    """
    if not tiles or columns < 1:
        raise UsageError(f"{len(tiles)} pictures in {columns} columns: pass at least one of each")
    if captions is not None and len(captions) != len(tiles):
        raise UsageError(f"{len(captions)} captions for {len(tiles)} pictures; pass one for each")
    pictures = [as_rgb(fit(tile, tile_size) if tile_size else tile) for tile in tiles]
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    step_x = width + GAP
    lines = max((text.count("\n") + 1 for text in captions), default=0) if captions else 0
    step_y = height + GAP + (NOTE + 8) * lines
    across, down = min(columns, len(pictures)), -(-len(pictures) // columns)
    size = (2 * MARGIN + across * step_x - GAP, 2 * MARGIN + down * step_y - GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x, y = MARGIN + index % columns * step_x, MARGIN + index // columns * step_y
        rows, cols = picture.shape[:2]
        sheet.paste(Image.fromarray(picture), (x + (width - cols) // 2, y + (height - rows) // 2))
        for line, full in enumerate(captions[index].split("\n") if captions else ()):
            text, below = shortened(full, NOTE, width), y + height + 5 + (NOTE + 8) * line
            draw.text((x + width // 2, below), text, INK, font_for(NOTE, text), "ma")
    return np.array(sheet)


def write_png(path: str | os.PathLike[str], rgb: RGB) -> None:
    """Write a picture whole or not at all (temporary file, rename).

    Args:
        path: the .png to write; its folder exists.
        rgb: uint8 (H, W, 3), RGB, or (H, W), gray.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        Image.fromarray(rgb).save(temporary, format="PNG", compress_level=2)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _tile_rows(
    tile: NDArray[np.uint8],
    cams: Mapping[str, NDArray[Any]],
    layout: str,
    alpha: float,
    colormap: str,
    head: NDArray[Any] | None,
) -> list[list[tuple[str, RGB]]]:
    scan = ("scan", as_rgb(tile))
    rows, compact = [], [scan]
    for method, cam in cams.items():
        heat = drawn_heatmap(cam, (tile.shape[0], tile.shape[1]), head)
        name = METHOD_LABELS.get(method, method)
        flat = "" if heat.any() else " (flat)"
        blend = inside_only(superimpose(tile, heat, alpha, colormap), head, as_rgb(tile))
        heat_cell = (f"{name} heatmap{flat}", inside_only(colorize(heat, colormap), head))
        rows.append([scan, heat_cell, (f"{name} on scan", blend)])
        compact.append((f"{name}{flat}", blend))
    return rows if layout == "full" else [compact]


def inside_only(rgb: RGB, head: NDArray[Any] | None, outside: RGB | None = None) -> RGB:
    """A picture within the head, and another or black around it: no color, not that of no heat."""
    if head is None:
        return rgb
    around = np.zeros_like(rgb) if outside is None else outside
    return np.where(head[:, :, np.newaxis] != 0, rgb, around)


def _draw_title(
    page: OverlayPage,
    predicted: str,
    probability: float,
    truth: str | None,
    verdict: Verdict | None,
) -> None:
    room = page.image.width - 2 * MARGIN
    base = MARGIN + TITLE - 4
    percent = ">99.9%" if 0.9995 <= probability < 1 else f"{probability:.1%}"
    x = page.text((MARGIN, base), "likeliest class", LABEL, GRAY)
    x = page.text((x + 8, base), shortened(predicted, TITLE, room - 220), TITLE, INK)
    page.text((x + 16, base), percent, TITLE, GRAY)
    if truth is not None:
        base += LABEL + 12
        _draw_line(page, base, "true class", truth, truth == predicted)
    if verdict is not None:
        base += LABEL + 12
        _draw_line(page, base, "decision", str(verdict), verdict.right)


def _draw_line(page: OverlayPage, base: int, name: str, text: str, right: bool | None) -> None:
    """A name, a text, and whether it is right, where that is known."""
    room = page.image.width - 2 * MARGIN - 160
    x = page.text((MARGIN, base), name, LABEL, GRAY)
    x = page.text((x + 8, base), shortened(text, LABEL, room), LABEL, INK)
    if right is None:
        return
    word, ink = ("right", _RIGHT) if right else ("wrong", _WRONG)
    page.draw.ellipse((x + 16, base - 10, x + 25, base - 1), fill=ink)
    page.text((x + 31, base), word, LABEL, ink)


def _draw_cell(page: OverlayPage, row: int, column: int, label: str, rgb: RGB) -> None:
    x, y = page.corner(row, column)
    height, width = rgb.shape[:2]
    page.text((x, y - 8), shortened(label, LABEL, page.cell_width), LABEL, INK)
    # Every cell is as large as a square scan: panels of one sheet have one size.
    x, y = x + (page.cell_width - width) // 2, y + (page.tile_height - height) // 2
    page.image.paste(Image.fromarray(rgb), (x, y))
    page.draw.rectangle((x - 1, y - 1, x + width, y + height), outline=LINE)


def _draw_color_bar(page: OverlayPage, row: int, column: int, colormap: str) -> None:
    x, y = page.corner(row, column)
    ramp = np.linspace(1, 0, page.tile_height)[:, None].repeat(BAR, axis=1)
    page.image.paste(Image.fromarray(colorize(ramp, colormap)), (x, y))
    bottom = y + page.tile_height
    page.draw.rectangle((x - 1, y - 1, x + BAR, bottom), outline=LINE)
    middle = (y + bottom) // 2
    for at, value, anchor in ((y, "1", "lt"), (middle, "0.5", "lm"), (bottom, "0", "lb")):
        page.text((x + BAR + 6, at), value, NOTE, INK, anchor)


def _draw_footer(page: OverlayPage, has_outline: bool, mask_head: bool, has_head: bool) -> None:
    notes = "each map stretched to its own 0 to 1"
    if mask_head:
        notes += "; heat inside the head only" if has_head else f"; {NO_HEAD}"
    if has_outline:
        notes += "; white outline: reference"
    base = page.image.height - MARGIN
    page.text((MARGIN, base), notes, NOTE, GRAY)
    page.text((page.image.width - MARGIN, base), DISCLAIMER, NOTE, GRAY, "rs")


def _check_scan(gray: NDArray[np.uint8]) -> None:
    if gray.ndim != 2 or gray.dtype != np.uint8 or gray.size == 0:
        raise UsageError(f"a scan is drawn from uint8 (H, W), not {gray.dtype} {gray.shape}")
