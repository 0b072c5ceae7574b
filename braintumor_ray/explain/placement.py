"""From maps of what the network saw to maps of the whole picture.

A network that is shown a square around the head explains that square, and its cells need not divide
the square evenly (`models.geometry`). What is stored and drawn is a map of the picture, of the same
number of cells, so that no reader has to know how a scan was cut or where a network's cells lie.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.decode.head import WHOLE, Box


def picture_maps(
    maps: NDArray[np.float32], boxes: Sequence[Box], frame: Box = WHOLE
) -> NDArray[np.float32]:
    """Resample maps of parts of pictures to maps of the pictures.

    Args:
        maps: (n, h, w), each of the part of its picture in `boxes`.
        boxes: what each part is, in fractions of the picture.
        frame: what a map's cells cover of its part, in fractions of the part: `Bundle.map_frame`.

    Returns:
        float32 (n, h, w), bilinear; 0 beyond the part, the nearest cell's value in the part but
        beyond the frame. A map that covers a whole picture stays as it is.
    """
    if all(box == WHOLE for box in boxes):
        return square_maps(maps, frame)
    return np.stack([_placed(cam, box, frame) for cam, box in zip(maps, boxes, strict=True)])


def as_stored(maps: NDArray[np.float32]) -> NDArray[np.float16]:
    """Maps as rows hold them: float16, >= 0."""
    return np.clip(maps, 0, np.finfo(np.float16).max).astype(np.float16)


def square_maps(maps: NDArray[np.float32], frame: Box) -> NDArray[np.float32]:
    """Resample maps (n, h, w) to maps of the squares that the network saw; see `picture_maps`."""
    if frame == WHOLE:
        return maps
    rows, columns = _weights(WHOLE, frame, maps.shape[1:])
    across = np.einsum("xj,nij->nix", columns, maps)  # in two steps, each without BLAS
    return np.asarray(np.einsum("yi,nix->nyx", rows, across), np.float32)


def _placed(cam: NDArray[np.float32], box: Box, frame: Box) -> NDArray[np.float32]:
    if box == frame == WHOLE:
        return cam
    rows, columns = _weights(box, frame, cam.shape)
    # einsum, not @: BLAS has threads of its own, which take torch's cores. Two steps: to look for
    # the best order costs a hundred times the products of such small maps.
    across = np.einsum("xj,ij->ix", columns, cam)
    return np.asarray(np.einsum("yi,ix->yx", rows, across), np.float32)


def _weights(
    box: Box, frame: Box, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of rows and columns of maps (h, w), see `_resampling`."""
    return (
        _resampling((box.top, box.bottom), (frame.top, frame.bottom), shape[0]),
        _resampling((box.left, box.right), (frame.left, frame.right), shape[1]),
    )


@lru_cache(maxsize=64)
def _resampling(
    part: tuple[float, float], frame: tuple[float, float], cells: int
) -> NDArray[np.float32]:
    """Weight of each of the map's cells in each of the picture's along an axis: (cells, cells).

    Where the part is small, a cell of the picture spans several of the map and is their mean.
    Shared by every caller of the cache: not to be changed.
    """
    start, end = part
    samples = max(1, round(1 / (end - start)))
    at = (np.arange(cells * samples) + 0.5) / (cells * samples)  # in the picture
    inside = (at - start) / (end - start)  # in the part
    covered = (inside - frame[0]) / (frame[1] - frame[0])  # in what the map covers of it
    position = (covered * cells - 0.5).clip(0, cells - 1)
    left = np.minimum(np.floor(position).astype(int), max(cells - 2, 0))
    right = np.minimum(left + 1, cells - 1)
    share = position - left
    within = (inside >= 0) & (inside <= 1)
    weights = np.zeros((cells * samples, cells), np.float32)
    sample = np.arange(cells * samples)
    np.add.at(weights, (sample, left), np.where(within, 1 - share, 0))
    np.add.at(weights, (sample, right), np.where(within, share, 0))
    return weights.reshape(cells, samples, cells).mean(axis=1)
