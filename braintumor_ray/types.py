"""Types that many modules name: arrays by what they hold, and the callback for progress."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Mask = Bools
"""True where a pixel, or a row, is meant."""
GrayImage = NDArray[np.uint8]
"""(H, W), 0 black to 255 white."""
MANUFACTURER = "braintumor-ray"
"""In DICOM objects of ours."""
PREDICTION_SET = "prediction_set"
"""A column of predictions whose bundle makes sets."""
FractionBox = tuple[float, float, float, float]
"""(x_min, y_min, x_max, y_max) in fractions of width and height."""
Progress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""
