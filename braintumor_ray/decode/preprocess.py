"""From uint8 gray at full size to the uint8 square that the network sees."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from braintumor_ray.types import GrayImage

_INTERPOLATIONS = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
}


@dataclass(frozen=True)
class Preprocessing:
    """How pixels reach the network; part of the bundle and of its fingerprint.

    Attributes:
        image_size: side S of the square input; aspect ratio is not kept, as in the references.
        interpolation: 'area', 'linear' or 'cubic'; 'area' becomes linear where it enlarges.
        mean: per RGB channel, for pixels in [0, 1].
        std: per RGB channel, for pixels in [0, 1].
    """

    image_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def resize(self, gray: GrayImage) -> GrayImage:
        """Resample uint8 (H, W) to uint8 (S, S); already square of that size: returned as is.

        Raises:
            ValueError: not a two-dimensional, non-empty uint8 array.
        """
        if gray.dtype != np.uint8 or gray.ndim != 2 or gray.size == 0:
            raise ValueError(f"expected uint8 (H, W), got {gray.dtype} {gray.shape}")
        size = (self.image_size, self.image_size)
        if gray.shape == size:
            return gray
        method = _INTERPOLATIONS[self.interpolation]
        if self.interpolation == "area" and min(gray.shape) < self.image_size:
            method = cv2.INTER_LINEAR  # INTER_AREA enlarges by repeating pixels
        return np.asarray(cv2.resize(gray, size, interpolation=method), dtype=np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "image_size": self.image_size,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`."""
        return cls(
            int(raw["image_size"]), raw["interpolation"], tuple(raw["mean"]), tuple(raw["std"])
        )


def shrunk(picture: GrayImage, longest: int) -> GrayImage:
    """A gray or RGB picture scaled down so that its longer side has at most `longest` pixels."""
    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
