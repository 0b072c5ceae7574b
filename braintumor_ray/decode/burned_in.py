"""Text that is burned into a picture: where it is, and the picture without it.

Looked for are lines of glyphs: connected strokes that are thin, sharp, of one gray level and one
height, and follow each other on a line. A single mark (R, L, a scale) is none; a name, a date or
a number is. Nothing is read: the text of a line is not known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from braintumor_ray.decode.types import Gray

if TYPE_CHECKING:
    from pydicom import Dataset

LEAST_GLYPHS = 4  # of a line; names, dates and ids have more, side marks and 'T1' fewer
# Longest side that is looked at and widest stroke there, in pixels: small text, then large text.
_SCALES = ((768, 7), (512, 13))
_MOST_ENLARGED = 3  # times; smaller letters than that shows cannot be read
_CONTRASTS = (40, 80, 150)  # of strokes over what surrounds them, gray levels
_HEIGHTS = (7, 80)  # of a glyph, pixels
_FEW = 6  # glyphs; shorter lines must be straighter and more even
_MOST_GLYPHS = 1500  # strokes of one picture; more are texture


Rectangle: TypeAlias = tuple[float, ...]  # left, top, right, bottom


@dataclass(frozen=True)
class TextLine:
    """A line of glyphs, in pixels of the picture: from `top` and `left` to below these."""

    top: int
    left: int
    bottom: int
    right: int


def is_tagged(header: "Dataset") -> bool:
    """Whether a DICOM header says so itself: Burned In Annotation (0028,0301) is YES."""
    return str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES"


def text_lines(gray: Gray) -> list[TextLine]:
    """Lines of burned-in text.

    Args:
        gray: uint8 (H, W).

    Returns:
        Their boxes, from the top; they may overlap.
    """
    boxes = [box for side, stroke in _SCALES for box in _lines_at(gray, side, stroke)]
    height, width = gray.shape
    return [
        TextLine(max(0, int(top)), max(0, int(left)), min(height, int(np.ceil(bottom))),
                 min(width, int(np.ceil(right))))
        for left, top, right, bottom in sorted(_merged(boxes), key=lambda box: box[1])
    ]  # fmt: skip


def masked(gray: Gray, lines: list[TextLine]) -> Gray:
    """A copy whose lines of text are black, with a margin of a third of their height."""
    made = gray.copy()
    for line in lines:
        margin = (line.bottom - line.top + 2) // 3
        top, left = max(0, line.top - margin), max(0, line.left - margin)
        made[top : line.bottom + margin, left : line.right + margin] = 0
    return made


def _lines_at(gray: Gray, side: int, stroke: int) -> Iterator[Rectangle]:
    """Lines that are found with the longest side at so many pixels; in pixels of `gray`."""
    scale = min(_MOST_ENLARGED, side / max(gray.shape))
    size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = np.asarray(cv2.resize(gray, size, interpolation=method), np.uint8)
    kernel = np.ones((stroke, stroke), np.uint8)
    for toned in (scaled, 255 - scaled):  # bright text, dark text
        thin = cv2.morphologyEx(toned, cv2.MORPH_TOPHAT, kernel)
        for contrast in _CONTRASTS:
            for box in _lines(np.asarray(thin >= contrast, np.uint8), toned):
                yield tuple(value / scale for value in box)


def _lines(strokes: Gray, gray: Gray) -> Iterator[Rectangle]:
    """Lines among the connected parts of a mask."""
    glyphs = _glyphs(strokes, gray)
    if not len(glyphs):
        return
    for members in _groups(_followers(glyphs)):
        line = glyphs[members]
        if _is_text(line):
            low, high = line[:, :2].min(axis=0), (line[:, :2] + line[:, 2:4]).max(axis=0)
            yield (*low.tolist(), *high.tolist())


def _glyphs(strokes: Gray, gray: Gray) -> NDArray[np.float64]:
    """Connected parts that may be glyphs: rows of left, top, width, height, area and gray level."""
    painted = cv2.countNonZero(strokes)
    if painted < LEAST_GLYPHS * _HEIGHTS[0]:  # a glyph has a pixel in each of its rows
        return np.empty((0, 6))
    # Labels of 16 bits take a quarter of the time; there are no more of them than pixels.
    kind = cv2.CV_16U if painted < 2**16 else cv2.CV_32S
    count, labels, stats, _ = cv2.connectedComponentsWithStats(strokes, connectivity=8, ltype=kind)
    if count <= LEAST_GLYPHS:
        return np.empty((0, 6))
    width, height = stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]
    area = stats[:, cv2.CC_STAT_AREA]
    fill = area / (width * height)
    least, most = _HEIGHTS
    fits = (height >= least) & (height <= most) & (width <= 5 * height)
    fits &= (fill >= 0.15) & ((fill <= 0.8) | (width <= 0.6 * height))
    fits[0] = False  # what is no stroke
    chosen = np.flatnonzero(fits)
    if not LEAST_GLYPHS <= len(chosen) <= _MOST_GLYPHS:
        return np.empty((0, 6))
    inside = labels > 0
    brightest = np.zeros(count, np.uint8)
    np.maximum.at(brightest, labels[inside], gray[inside])
    return np.column_stack([stats[chosen, :5], brightest[chosen]]).astype(float)


def _followers(glyphs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether glyph j follows glyph i on a line: alike in height and gray level, close, level."""
    left, top, width, height, _, level = glyphs.T
    taller = np.maximum.outer(height, height)
    gap = left[None, :] - (left + width)[:, None]
    apart = np.abs(np.subtract.outer(top + height, top + height))  # of the feet
    found = (gap >= -0.15 * taller) & (gap <= 0.9 * taller) & (apart <= 0.2 * taller)
    found &= np.abs(np.subtract.outer(height, height)) <= 0.35 * taller
    found &= np.abs(np.subtract.outer(level, level)) <= 30
    return np.asarray(found, bool)


def _groups(followed: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    from scipy.sparse.csgraph import connected_components

    count, group = connected_components(followed, directed=False)
    sizes = np.bincount(group, minlength=count)
    return [np.flatnonzero(group == each) for each in np.flatnonzero(sizes >= LEAST_GLYPHS)]


def _is_text(line: NDArray[np.float64]) -> bool:
    """Whether glyphs that follow each other are enough, on one line and of one gray level."""
    left, top, width, height, _, level = line.T
    tall, feet = float(np.median(height)), top + height
    apart = np.abs(feet - np.median(feet))
    straight = np.median(apart) <= 0.08 * tall + 0.5
    even = height.std() <= 0.2 * tall and level.std() <= 15
    if len(line) < _FEW:  # folds of the brain are four alike now and then
        straight &= apart.max() <= 0.12 * tall + 0.5
        even &= height.std() <= 0.12 * tall
    long = (left + width).max() - left.min() >= 2 * tall
    return bool(len(line) >= LEAST_GLYPHS and straight and even and long)


def _merged(
    boxes: list[Rectangle],
) -> list[Rectangle]:
    """Boxes that overlap joined to one: a line is found at several contrasts."""
    left = list(boxes)
    done: list[Rectangle] = []
    while left:
        box = left.pop()
        touching = [each for each in left if _overlap(box, each)]
        if not touching:
            done.append(box)
            continue
        left = [each for each in left if each not in touching]
        joined = np.array([box, *touching])
        left.append((*joined[:, :2].min(axis=0).tolist(), *joined[:, 2:].max(axis=0).tolist()))
    return done


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
