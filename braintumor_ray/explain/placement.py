"""From maps of what the network saw to maps of the whole picture.

A network that is shown a square around the head explains that square. What is stored and drawn is a
map of the picture, of the same number of cells, so that no reader has to know how a scan was cut.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.decode.head import WHOLE, Box

_SAMPLES = 4  # per cell and axis: a cell of the picture may span several of the square


def picture_maps(maps: NDArray[np.float32], boxes: Sequence[Box]) -> NDArray[np.float32]:
    """Resample maps of parts of pictures to maps of the pictures.

    Args:
        maps: (n, h, w), each of the part of its picture in `boxes`.
        boxes: what each part is, in fractions of the picture.

    Returns:
        float32 (n, h, w): the mean over each cell of the picture of the bilinearly upsampled map,
        0 beyond the part.
    """
    if all(box == WHOLE for box in boxes):
        return maps
    sides = np.array(boxes, np.float64).reshape(-1, 4)
    rows = _resampling(sides[:, 1], sides[:, 3], maps.shape[1])
    columns = _resampling(sides[:, 0], sides[:, 2], maps.shape[2])
    placed = np.einsum("nyi,nij,nxj->nyx", rows, maps, columns, optimize=True)
    return np.asarray(placed, np.float32)


def _resampling(
    start: NDArray[np.float64], end: NDArray[np.float64], cells: int
) -> NDArray[np.float32]:
    """Weights float32 (n, cells, cells) of the part's cells in each cell of the picture's axis."""
    at = (np.arange(cells * _SAMPLES) + 0.5) / (cells * _SAMPLES)  # in the picture
    inside = (at - start[:, None]) / (end - start)[:, None]  # in the part, (n, samples)
    position = (inside * cells - 0.5).clip(0, cells - 1)
    left = np.minimum(np.floor(position).astype(int), max(cells - 2, 0))
    right = np.minimum(left + 1, cells - 1)
    share = position - left
    within = (inside >= 0) & (inside <= 1)
    weights = np.zeros((len(start), cells * _SAMPLES, cells), np.float32)
    scan, sample = np.ogrid[: len(start), : cells * _SAMPLES]
    np.add.at(weights, (scan, sample, left), np.where(within, 1 - share, 0))
    np.add.at(weights, (scan, sample, right), np.where(within, share, 0))
    return weights.reshape(len(start), cells, _SAMPLES, cells).mean(axis=2)
