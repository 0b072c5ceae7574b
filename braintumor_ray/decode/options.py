"""How a volume becomes frames."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from braintumor_ray.choices import Plane
from braintumor_ray.options import Option

VOLUMES = "Source"  # its panel in `--help`


@dataclass(frozen=True)
class VolumeOptions:
    """How a volume becomes frames; a DICOM file and a raster file have their own.

    Attributes:
        plane: The slices of a NIfTI volume: feet to head, back to front, or left to right.
        volume: Which volume of a 4-D NIfTI, from 0.
    """

    PANEL: ClassVar = VOLUMES

    plane: Annotated[Plane, Option("Slices of NIfTI volumes.")] = "axial"
    volume: Annotated[int, Option("Which volume of a 4-D NIfTI, from 0.", least=0)] = 0

    @property
    def mark(self) -> str:
        """What path and URI of a scan end in; empty for the default way.

        Slices of two planes are so never taken for the same scan. How a file is to be cut is read
        from a catalog's columns, not from here.
        """
        if self == DEFAULT_VOLUMES:
            return ""
        return f"#plane={self.plane}&volume={self.volume}"


DEFAULT_VOLUMES = VolumeOptions()
