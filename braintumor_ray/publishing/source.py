"""The scan that a row was made of: read again, checked, with its place in the patient."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from braintumor_ray.decode.burned_in import is_tagged, masked, text_lines
from braintumor_ray.decode.decode import decode
from braintumor_ray.decode.files import read_file
from braintumor_ray.decode.hashes import pixel_sha256
from braintumor_ray.decode.sniff import sniff
from braintumor_ray.decode.types import DEFAULT_LIMITS
from braintumor_ray.errors import PublishError

_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Type 2 in every derived object: present, and empty where the source has none (PS3.5, 7.4.3).
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_BURNED_IN = (
    "burned-in text, by tag 0028,0301 or in the picture; --mask-burned-in masks what is found, "
    "--allow-burned-in publishes it as it is"
)
Text: TypeAlias = Literal["none", "masked", "shown"]


class Refused(PublishError):
    """Why a row is not published: one stable sentence without paths, ids or tag values."""


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """A frame of a DICOM file with what a derived object takes from it.

    Attributes:
        header: the attributes of the file without its pixels.
        gray: uint8 (H, W), as scored; text is black where it is masked.
        frame: which frame, from 0.
        position: of the center of the upper left pixel in the patient, in mm (x, y, z).
        orientation: direction of a row and of a column (6 cosines).
        spacing: between rows and between columns, in mm.
        thickness: of the slice, in mm.
        text: burned-in text: `none`, `masked`, or `shown`.
    """

    header: Dataset
    gray: NDArray[np.uint8]
    frame: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float
    text: Text = "none"

    @property
    def is_multiframe(self) -> bool:
        """Whether references to the source need the number of the frame."""
        return "NumberOfFrames" in self.header


def read_source(
    location: str,
    row: Mapping[str, Any],
    allow_burned_in: bool = False,
    mask_burned_in: bool = False,
) -> SourceFrame:
    """Read the file of a row again.

    Args:
        location: of the file, a path or URI.
        row: with `frame` and `pixel_sha256`.
        allow_burned_in: also where header or picture show burned-in annotation.
        mask_burned_in: make the text black that is found in the picture.

    Raises:
        Refused: it cannot be read, is not DICOM, has other pixels than were scored, or lacks what
            a derived object needs.
    """
    content = read_file(location, DEFAULT_LIMITS)
    if content.data is None:
        raise Refused(f"source: {content.reason}")
    return source_of(content.data, row, allow_burned_in, mask_burned_in)


def source_of(
    data: bytes,
    row: Mapping[str, Any],
    allow_burned_in: bool = False,
    mask_burned_in: bool = False,
) -> SourceFrame:
    """As `read_source`, of a file's content.

    Raises:
        Refused: as `read_source`.
    """
    if sniff(data) != "dicom":
        raise Refused("source: not a DICOM file")
    frame = int(row["frame"])
    gray = _scored_pixels(data, frame, row["pixel_sha256"])
    header = _header(data)
    gray, text = _without_text(gray, header, mask_burned_in)
    if text == "shown" and not allow_burned_in:
        raise Refused(_BURNED_IN)
    if gray.shape != (header.Rows, header.Columns):
        raise Refused("source: a mosaic, whose slices have no position of their own")
    return SourceFrame(header, gray, frame, *_place(header, frame), text)


def _without_text(
    gray: NDArray[np.uint8], header: Dataset, mask: bool
) -> tuple[NDArray[np.uint8], Text]:
    """The picture, masked if wanted, and what is with its text by tag (0028,0301) or measure."""
    lines = text_lines(gray)
    if lines and mask:
        return masked(gray, lines), "masked"
    return gray, "shown" if lines or is_tagged(header) else "none"


def _scored_pixels(data: bytes, frame: int, expected: str | None) -> NDArray[np.uint8]:
    decoded = decode(data, frame=frame)
    if decoded.gray is None:
        raise Refused(f"source: {decoded.reason}")
    if pixel_sha256(decoded.gray) != expected:
        raise Refused("source: its pixels are not those that were scored (hash differs)")
    return decoded.gray


def _header(data: bytes) -> Dataset:
    header = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
    missing = [name for name in _REQUIRED if not header.get(name)]
    if missing:
        raise Refused(f"source: its header has no {missing[0]}")
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, None)
    # In UTF-8: our own text may have any letters, and highdicom takes no set that is extended by
    # escapes, as those of Japanese and Korean names are.
    header.SpecificCharacterSet = "ISO_IR 192"
    return header


def _place(
    header: Dataset, frame: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], float]:
    """Position, orientation, spacing and thickness of a frame (PS3.3, C.7.6.2 and C.7.6.16)."""
    measures = _group(header, frame, "PixelMeasuresSequence")
    position = _numbers(_group(header, frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = _numbers(
        _group(header, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6
    )
    spacing = _numbers(measures, "PixelSpacing", 2)
    if not header.get("FrameOfReferenceUID"):
        raise Refused("source: its header has no FrameOfReferenceUID")
    # Thickness is type 2 in MR; a map needs a number, and a pixel's size is the least claim.
    thickness = float(measures.get("SliceThickness") or min(spacing))
    return position, orientation, spacing, thickness


def _group(header: Dataset, frame: int, name: str) -> Dataset:
    """The item of a functional group that holds for a frame; of a single-frame object itself."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or ()
    own = list(frames[frame : frame + 1])
    for groups in (*own, *(header.get("SharedFunctionalGroupsSequence") or ())):
        if groups.get(name):
            item: Dataset = groups[name][0]
            return item
    return header


def _numbers(item: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    value = item.get(keyword)
    found = tuple(float(each) for each in value) if value else ()
    if len(found) != count or not np.isfinite(found).all():
        raise Refused(f"source: its header has no {keyword}")
    return found
