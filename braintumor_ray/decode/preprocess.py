"""From uint8 gray at full size to the uint8 square that the network sees."""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from braintumor_ray.decode.head import WHOLE, Box, head_view
from braintumor_ray.types import GrayImage

Crop = Literal["none", "head"]
Intensity = Literal["none", "head"]

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
        crop: 'head' shows a square around the head, aspect kept; 'none' the whole picture.
        intensity: 'head' stretches grays to the range of the head; 'none' leaves them.
    """

    image_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: Crop = "none"
    intensity: Intensity = "none"

    def resize(self, gray: GrayImage) -> GrayImage:
        """The network's square, without the part of the picture that it shows; see `square`."""
        return self.square(gray)[0]

    def square(self, gray: GrayImage) -> tuple[GrayImage, Box]:
        """Resample uint8 (H, W) to the uint8 (S, S) that the network sees.

        Returns:
            The square (the picture itself where it has that size and nothing else is asked for),
            and the part of the picture that it shows.

        Raises:
            ValueError: not a two-dimensional, non-empty uint8 array.
        """
        if gray.dtype != np.uint8 or gray.ndim != 2 or gray.size == 0:
            raise ValueError(f"expected uint8 (H, W), got {gray.dtype} {gray.shape}")
        if self.crop != "none" or self.intensity != "none":
            crop, stretch = self.crop == "head", self.intensity == "head"
            return head_view(gray, self.image_size, crop=crop, stretch=stretch)
        size = (self.image_size, self.image_size)
        if gray.shape == size:
            return gray, WHOLE
        method = _INTERPOLATIONS[self.interpolation]
        if self.interpolation == "area" and min(gray.shape) < self.image_size:
            method = cv2.INTER_LINEAR  # INTER_AREA enlarges by repeating pixels
        return np.asarray(cv2.resize(gray, size, interpolation=method), dtype=np.uint8), WHOLE

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; later fields only where used, so that keys of caches stay."""
        later = {"crop": self.crop, "intensity": self.intensity}
        return {
            "image_size": self.image_size,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            **{name: value for name, value in later.items() if value != "none"},
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`."""
        return cls(
            int(raw["image_size"]),
            raw["interpolation"],
            tuple(raw["mean"]),
            tuple(raw["std"]),
            raw.get("crop", "none"),
            raw.get("intensity", "none"),
        )


def shrunk(picture: GrayImage, longest: int) -> GrayImage:
    """A gray or RGB picture scaled down so that its longer side has at most `longest` pixels."""
    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
