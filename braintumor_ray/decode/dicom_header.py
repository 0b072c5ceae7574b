"""What a DICOM header says: whether the object is an MR image, which plane, whose ids.

Values of tags never reach a reason, a warning or a log line: they may name people.
"""

import io
import logging
import re
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from braintumor_ray.decode.types import DecodeLimits, Unreadable

MOST_FRAMES = 65_535
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # VR CS, PS3.5 table 6.2-1
_PHOTOMETRIC = (
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB",
    "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT",
)  # fmt: skip
_LOCALIZER = re.compile(
    r"(?<![a-z])(locali[sz]ers?|loc|scouts?|surveys?|topograms?"
    r"|(3|three|tri)[ _-]?(plane|pl)([ _-]?loc)?)(?![a-z])"
)
_UNHEARD = ("ignore", None, Warning, re.compile("pydicom"), 0)
_PERSONAL = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientBirthDate",
    "PatientBirthName",
    "PatientMotherBirthName",
    "AccessionNumber",
    "StudyID",
    "MedicalRecordLocator",
    "ReferringPhysicianName",
    "RequestingPhysician",
    "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy",
    "OperatorsName",
)


def read_dicom(data: bytes, limits: DecodeLimits, *, pixels: bool = True) -> tuple[Dataset, bool]:
    """Parse a DICOM file, with or without preamble and meta information (PS3.10, 7.1).

    Args:
        data: the file, or its first bytes.
        limits: what a deflated file may become.
        pixels: also read the pixel data.

    Returns:
        The dataset, with a transfer syntax in its `file_meta`, and whether pixel data follow what
        was read (only without `pixels`).

    Raises:
        Unreadable: a deflated file that is damaged or too large.
    """
    _quiet_pydicom()
    _check_deflated(data, limits)
    until = _UntilPixels(not pixels)
    dataset = read_partial(io.BytesIO(data), stop_when=until, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = _syntax_of(dataset)
    return dataset, until.reached


def why_no_image(dataset: Dataset) -> str | None:
    """Why there is nothing to decode, or None where there are pixel data."""
    if any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        return None
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    if uid is None:
        return "damaged DICOM: neither pixel data nor the kind of object"
    if "Image Storage" in pydicom.uid.UID(uid).name:
        return "DICOM image without its pixel data (cut off, or header only)"
    return "DICOM without pixel data (not an image)"


def why_skipped(dataset: Dataset) -> str | None:
    """Why a readable object is not to be scored, or None."""
    if is_directory(dataset):
        return "DICOMDIR: lists files, is no scan"
    modality = text_of(dataset, "Modality").upper()
    if modality not in ("", "MR"):
        return "not MR: another modality"
    if _is_localizer(dataset):
        return "localizer"
    return None


def is_directory(dataset: Dataset) -> bool:
    """Whether this is a DICOMDIR (PS3.10, 8.6), whatever the file is called."""
    uid = dataset.file_meta.get("MediaStorageSOPClassUID")
    return bool(uid == MediaStorageDirectoryStorage) or "DirectoryRecordSequence" in dataset


def frame_count(dataset: Dataset) -> int:
    """Frames in the object.

    Raises:
        Unreadable: not a number that can be meant.
    """
    count = int(dataset.get("NumberOfFrames") or 1)
    if not 0 < count <= MOST_FRAMES:
        raise Unreadable("damaged DICOM: impossible number of frames")
    return count


def functional_group(dataset: Dataset, frame: int, keyword: str) -> Dataset:
    """Where a frame's attributes stand (PS3.3, C.7.6.16): its own group, the shared one, or above.

    Args:
        dataset: the object.
        frame: from 0.
        keyword: of the functional group's sequence, such as 'FrameVOILUTSequence'.
    """
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in [*own[frame : frame + 1], *shared[:1]]:
        if groups.get(keyword):
            item: Dataset = groups[keyword][0]
            return item
    return dataset


def mode_of(dataset: Dataset) -> str | None:
    """How samples are stored, such as 'MONOCHROME2 12-bit'; None where that is unknown."""
    photometric, bits = text_of(dataset, "PhotometricInterpretation"), dataset.get("BitsStored")
    known = photometric in _PHOTOMETRIC and isinstance(bits, int)
    return f"{photometric} {bits}-bit" if known else None


def header_tags(dataset: Dataset) -> dict[str, str]:
    """`Probe.tags` of a DICOM object; those that it lacks are left out."""
    found = {
        "modality": _modality(dataset),
        "plane": plane_of(functional_group(dataset, 0, "PlaneOrientationSequence")),
        "sequence": _sequence(dataset),
        "patient": text_of(dataset, "PatientID"),
        "study": text_of(dataset, "StudyInstanceUID"),
        "series": text_of(dataset, "SeriesInstanceUID"),
        "sop": text_of(dataset, "SOPInstanceUID"),
    }
    return {name: value for name, value in found.items() if value}


def plane_of(item: Dataset) -> str | None:
    """The anatomical plane nearest to Image Orientation (Patient) (PS3.3, C.7.6.2.1.1)."""
    cosines: Sequence[Any] = item.get("ImageOrientationPatient") or ()
    if len(cosines) != 6:
        return None
    rows, columns = np.array([float(value) for value in cosines]).reshape(2, 3)
    normal = np.abs(np.cross(rows, columns))
    if not np.isfinite(normal).all() or not normal.any():
        return None
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def text_of(dataset: Dataset, keyword: str) -> str:
    """A tag's value as text, several joined by a space; empty where it is absent."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    parts = value if isinstance(value, list | pydicom.multival.MultiValue) else [value]
    return " ".join(str(part) for part in parts).strip()


def _is_localizer(dataset: Dataset) -> bool:
    if "LOCALIZER" in text_of(dataset, "ImageType").upper().split():
        return True
    words = f"{text_of(dataset, 'SeriesDescription')} | {text_of(dataset, 'ProtocolName')}"
    return bool(_LOCALIZER.search(words.lower()))


def _modality(dataset: Dataset) -> str | None:
    code = text_of(dataset, "Modality").upper()
    return _unless_personal(dataset, code) if _CODE.fullmatch(code) else None


def _sequence(dataset: Dataset) -> str | None:
    keywords = ("SeriesDescription", "ProtocolName", "PulseSequenceName", "SequenceName")
    words = next((words for key in keywords if (words := text_of(dataset, key))), "")
    return _unless_personal(dataset, "".join(c for c in words if c.isprintable())[:64])


def _unless_personal(dataset: Dataset, text: str) -> str | None:
    """The text, unless it repeats a word of a name or id: people type them anywhere."""
    personal = " ".join(text_of(dataset, keyword) for keyword in _PERSONAL).lower()
    said = re.findall(r"[^\W_]{3,}", personal)
    return None if any(word in text.lower() for word in said) else text or None


class _UntilPixels:
    """Stops pydicom before the pixel data, and says whether it came to them."""

    def __init__(self, stop: bool) -> None:
        self._stop = stop
        self.reached = False

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        self.reached = self._stop and tag in _PIXEL_TAGS
        return self.reached


def _syntax_of(dataset: Dataset) -> pydicom.uid.UID:
    implicit, little = dataset.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _check_deflated(data: bytes, limits: DecodeLimits) -> None:
    """Refuse a bomb: pydicom inflates all at once (PS3.5, A.5)."""
    if DeflatedExplicitVRLittleEndian.encode() not in data:
        return
    stream = io.BytesIO(data)
    read_preamble(stream, force=True)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflating.decompress(data[stream.tell() :], limits.max_bytes)
    except zlib.error as error:
        raise Unreadable("damaged DICOM: the deflated part cannot be inflated") from error
    if inflating.unconsumed_tail:
        raise Unreadable(f"over the limit of {limits.max_bytes} bytes when inflated")


def _quiet_pydicom() -> None:
    """Its warnings and log lines quote values of tags."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    if _UNHEARD not in warnings.filters:  # adding it again would repeat everybody's warnings
        warnings.filterwarnings("ignore", module=_UNHEARD[3].pattern)
