"""Test-time augmentation: views of a scan whose logits are averaged, and what they decide by."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

TTA_DEGREES = 7.0  # well inside what patients turn their heads
NUMBER_OF_VIEWS = 6
Images = NDArray[np.uint8]


def test_time_views(images: Images) -> Iterator[Images]:
    """The images as they are, mirrored left-right, and both turned by 7 degrees either way.

    Args:
        images: uint8 (n, S, S).

    Yields:
        uint8 (n, S, S), six times; what a turn brings in repeats the picture's edge.
    """
    for view in (images, np.ascontiguousarray(images[:, :, ::-1])):
        yield view
        yield _turned(view, TTA_DEGREES)
        yield _turned(view, -TTA_DEGREES)


def _turned(images: Images, degrees: float) -> Images:
    size = images.shape[1]
    center = ((size - 1) / 2, (size - 1) / 2)
    matrix = cv2.getRotationMatrix2D(center, degrees, 1.0)
    turned: list[Any] = [
        cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
        for image in images
    ]
    return np.stack(turned)
