"""From maps of what the network saw to maps of the whole picture.

A network that is shown a square around the head explains that square. What is stored and drawn is a
map of the picture, of the same number of cells, so that no reader has to know how a scan was cut.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.decode.head import WHOLE, Box


def picture_maps(maps: NDArray[np.float32], boxes: Sequence[Box]) -> NDArray[np.float32]:
    """Resample maps of parts of pictures to maps of the pictures.

    Args:
        maps: (n, h, w), each of the part of its picture in `boxes`.
        boxes: what each part is, in fractions of the picture.

    Returns:
        float32 (n, h, w), bilinear, 0 beyond the part; a map of a whole picture stays as it is.
    """
    if all(box == WHOLE for box in boxes):
        return maps
    return np.stack([_placed(cam, box) for cam, box in zip(maps, boxes, strict=True)])


def _placed(cam: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
    if box == WHOLE:
        return cam
    rows = _resampling(box.top, box.bottom, cam.shape[0])
    columns = _resampling(box.left, box.right, cam.shape[1])
    # einsum, not @: BLAS has threads of its own, which take torch's cores.
    return np.asarray(np.einsum("yi,ij,xj->yx", rows, cam, columns, optimize=True), np.float32)


def _resampling(start: float, end: float, cells: int) -> NDArray[np.float32]:
    """Weight of each of the part's cells in each of the picture's along an axis: (cells, cells).

    Where the part is small, a cell of the picture spans several of it and is their mean.
    """
    samples = max(1, round(1 / (end - start)))
    at = (np.arange(cells * samples) + 0.5) / (cells * samples)  # in the picture
    inside = (at - start) / (end - start)  # in the part
    position = (inside * cells - 0.5).clip(0, cells - 1)
    left = np.minimum(np.floor(position).astype(int), max(cells - 2, 0))
    right = np.minimum(left + 1, cells - 1)
    share = position - left
    within = (inside >= 0) & (inside <= 1)
    weights = np.zeros((cells * samples, cells), np.float32)
    sample = np.arange(cells * samples)
    np.add.at(weights, (sample, left), np.where(within, 1 - share, 0))
    np.add.at(weights, (sample, right), np.where(within, share, 0))
    return weights.reshape(cells, samples, cells).mean(axis=1)
