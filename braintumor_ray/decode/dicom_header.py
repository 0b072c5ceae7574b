"""What a DICOM header says: whether the object is an MR image, which plane, whose ids.

Values of tags never reach a reason, a warning or a log line: they may name people.
"""

import io
import logging
import re
import struct
import warnings
import zlib
from functools import lru_cache
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

from braintumor_ray.decode.dicom_layout import (
    PIXEL_KEYWORDS,
    UNDEFINED,
    PixelElement,
    syntax_of_fragments,
)
from braintumor_ray.decode.dicom_tags import Tags
from braintumor_ray.decode.sniff import dicom_element
from braintumor_ray.decode.types import DecodeLimits, Unreadable
from braintumor_ray.types import MANUFACTURER

_PIXEL_TAGS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_META_LENGTH, _TRANSFER_SYNTAX, _CHARACTER_SET = 0x00020000, 0x00020010, 0x00080005
_META_VRS = (b"UI", b"UL", b"SH", b"AE")  # with a length of 16 bits
_DELIMITER = b"\xfe\xff\xdd\xe0"  # after the last fragment
_OPTIONAL_NUMBERS = (
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
)
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # VR CS, PS3.5 table 6.2-1
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


def read_dicom(
    data: bytes, limits: DecodeLimits, *, pixels: bool = True
) -> tuple[Tags, PixelElement | None]:
    """Parse a DICOM file, with or without preamble and meta information (PS3.10, 7.1).

    Args:
        data: the file, or its first bytes.
        limits: what a deflated file may become.
        pixels: also read the pixel data.

    Returns:
        The attributes of a dataset with a transfer syntax in its `file_meta`, and its pixel data
        (without `pixels` only what follows the header says of them); None where it has none.

    Raises:
        Unreadable: a deflated file that is damaged or too large.
    """
    _quiet_pydicom()
    _check_deflated(data, limits)
    try:
        tags, found = _parsed(data, stop=not pixels)
    except Exception:  # whatever pydicom raises: three elements decide how it reads all others
        mended = _without_unusable(data)
        if mended is None:
            raise
        tags, found = _parsed(mended, stop=not pixels)
        tags.unread.add("SpecificCharacterSet")
    found = found or _pixel_element(tags)
    meta = tags.dataset.file_meta
    written = pydicom.uid.UID(Tags(meta).text("TransferSyntaxUID"))
    meant = written.is_valid and "." in written
    syntax = written if meant else _syntax_of(tags.dataset, found)
    meta.add_new(_TRANSFER_SYNTAX, "UI", syntax)
    return tags, found


def why_no_image(tags: Tags) -> str | None:
    """Why there is nothing to decode, or None where there are pixel data."""
    if any(keyword in tags for keyword in PIXEL_KEYWORDS):
        return None
    uid = tags.text("SOPClassUID") or Tags(tags.dataset.file_meta).text("MediaStorageSOPClassUID")
    if not uid:
        return "damaged DICOM: neither pixel data nor the kind of object"
    if "Image Storage" in pydicom.uid.UID(uid).name:
        return "DICOM image without its pixel data (cut off, or header only)"
    return "DICOM without pixel data (not an image)"


def why_skipped(tags: Tags) -> str | None:
    """Why a readable object is not to be scored, or None."""
    if reason := why_no_scan(tags):
        return reason
    modality = tags.text("Modality").upper()
    if modality not in ("", "MR"):
        return "not MR: another modality"
    if _is_localizer(tags):
        return "localizer"
    return None


def why_no_scan(tags: Tags) -> str | None:
    """Why an object is none of a scanner, with or without pixel data, or None.

    A DICOMDIR (PS3.10, 8.6) is known whatever the file is called, and what `publish` made whatever
    its modality became on the way.
    """
    uid = Tags(tags.dataset.file_meta).text("MediaStorageSOPClassUID")
    if uid == MediaStorageDirectoryStorage or "DirectoryRecordSequence" in tags:
        return "DICOMDIR: lists files, is no scan"
    if tags.text("Manufacturer") == MANUFACTURER:
        return "published by braintumor-ray: a map, report or capture, no scan"
    return None


def functional_group(tags: Tags, frame: int, keyword: str) -> Tags:
    """Where a frame's attributes are (PS3.3, C.7.6.16): its own group, the shared one, or above.

    Args:
        tags: the object.
        frame: from 0.
        keyword: of the functional group's sequence, such as 'FrameVOILUTSequence'.
    """
    own = tags.item("PerFrameFunctionalGroupsSequence", frame)
    shared = tags.item("SharedFunctionalGroupsSequence", 0)
    for groups in (own, shared):
        item = groups.item(keyword, 0) if groups else None
        if item is not None:
            return item
    return tags


def mosaic_tiles(tags: Tags) -> int | None:
    """Slices of a Siemens mosaic; 0 where the object is none, None where their number is lost.

    Scanners since XA write the slices as frames and keep the word in Image Type, so that several
    frames are no mosaic.
    """
    if (tags.number("NumberOfFrames") or 1) > 1:
        return 0
    named = "MOSAIC" in tags.text("ImageType").upper().split()
    count = _private_count(tags)
    if count is None and named:
        count = _csa_count(tags.dataset)
    if count is None:
        return None if named else 0
    return count if count > 1 else 0


def header_tags(tags: Tags) -> dict[str, str]:
    """`Probe.tags` of a DICOM object; those that it lacks are left out."""
    for keyword in _OPTIONAL_NUMBERS:
        tags.numbers(keyword)  # notes what cannot be parsed: decoding takes it for absent
    found = {
        "modality": _modality(tags),
        "plane": plane_of(functional_group(tags, 0, "PlaneOrientationSequence")),
        "sequence": _sequence(tags),
        "patient": tags.text("PatientID"),
        "study": tags.text("StudyInstanceUID"),
        "series": tags.text("SeriesInstanceUID"),
        "sop": tags.text("SOPInstanceUID"),
        "unread": " ".join(sorted(tags.unread)),
    }
    return {name: value for name, value in found.items() if value}


def plane_of(tags: Tags) -> str | None:
    """The anatomical plane nearest to Image Orientation (Patient) (PS3.3, C.7.6.2.1.1)."""
    cosines = tags.numbers("ImageOrientationPatient")
    if len(cosines) != 6:
        return None
    rows, columns = np.array(cosines).reshape(2, 3)
    normal = np.abs(np.cross(rows, columns))
    if not np.isfinite(normal).all() or not normal.any():
        return None
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def _is_localizer(tags: Tags) -> bool:
    if "LOCALIZER" in tags.text("ImageType").upper().split():
        return True
    words = f"{tags.text('SeriesDescription')} | {tags.text('ProtocolName')}"
    return bool(_LOCALIZER.search(words.lower()))


def _modality(tags: Tags) -> str | None:
    code = tags.text("Modality").upper()
    return _unless_personal(tags, code) if _CODE.fullmatch(code) else None


def _sequence(tags: Tags) -> str | None:
    keywords = ("SeriesDescription", "ProtocolName", "PulseSequenceName", "SequenceName")
    text = next((text for key in keywords if (text := tags.text(key))), "")
    return _unless_personal(tags, "".join(c for c in text if c.isprintable())[:64])


def _unless_personal(tags: Tags, text: str) -> str | None:
    """The text, unless it repeats a word of a name or id: people type them anywhere."""
    personal = " ".join(tags.text(keyword) for keyword in _PERSONAL).lower()
    words = re.findall(r"[^\W_]{3,}", personal)
    return None if any(word in text.lower() for word in words) else text or None


def _private_count(tags: Tags) -> int | None:
    """Number Of Images In Mosaic (0019,100a), where Siemens reserved the block."""
    if not tags.text(0x00190010).startswith("SIEMENS MR HEADER"):
        return None
    value = tags.value(0x0019100A)
    if isinstance(value, bytes):  # VR UN, as implicit encoding leaves it
        text = value.strip(b" \0")
        return int(text) if text.isdigit() else int.from_bytes(value[:2], "little")
    return value if isinstance(value, int) else None


@lru_cache(maxsize=1)
def _csa_reader() -> Any:  # noqa: ANN401 - nibabel is not typed
    # Importing it warns of other parts of nibabel's DICOM readers.
    warnings.filterwarnings("ignore", message="The DICOM readers are highly experimental")
    from nibabel.nicom import csareader

    return csareader


def _csa_count(dataset: Dataset) -> int | None:
    """The same number in the CSA image header (0029,1010)."""
    csareader = _csa_reader()
    try:
        header = csareader.get_csa_header(dataset, "image")
        count = None if header is None else csareader.get_n_mosaic(header)
    except (csareader.CSAReadError, ValueError, KeyError, IndexError, struct.error):
        return None
    return None if count is None else int(count)


class _UntilPixels:
    """Stops pydicom before the pixel data, and notes them."""

    def __init__(self, stream: io.BytesIO, stop: bool) -> None:
        self._stream, self._stop = stream, stop
        self.found: PixelElement | None = None

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        if not self._stop or tag not in _PIXEL_TAGS:
            return False
        value = self._stream.getvalue()[self._stream.tell() :] if length == UNDEFINED else b""
        self.found = PixelElement(_PIXEL_TAGS[tag], length, value, _DELIMITER in value)
        return True


def _parsed(data: bytes, *, stop: bool) -> tuple[Tags, PixelElement | None]:
    stream = io.BytesIO(data)
    until = _UntilPixels(stream, stop)
    return Tags(read_partial(stream, stop_when=until, force=True)), until.found


def _without_unusable(data: bytes) -> bytes | None:
    """The file without the length of its meta information and its character set.

    The transfer syntax is written anew as what it should be. None where it is no such file.
    """
    if data[128:132] != b"DICM":
        return None
    at, kept = 132, [data[:132]]
    while (found := dicom_element(data, at, "<")) and found[:2] <= (8, 5):
        group, number, start, end = found
        tag = group << 16 | number
        if tag == _TRANSFER_SYNTAX:
            value = data[start:end]
            head = struct.pack("<HH2sH", group, number, b"UI", len(value))
            kept.append(head + value)
        elif tag not in (_META_LENGTH, _CHARACTER_SET):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _pixel_element(tags: Tags) -> PixelElement | None:
    keyword = next((keyword for keyword in PIXEL_KEYWORDS if keyword in tags), None)
    if keyword is None:
        return None
    value = tags.value(keyword)
    if not isinstance(value, bytes):
        raise Unreadable("damaged DICOM: pixel data of a kind that holds no pixels")
    length = UNDEFINED if tags.dataset[keyword].is_undefined_length else len(value)
    return PixelElement(keyword, length, value)


def _syntax_of(dataset: Dataset, pixels: PixelElement | None) -> pydicom.uid.UID:
    """What a file without its meta information is in; a compressed one by its first fragment."""
    if pixels and pixels.length == UNDEFINED:
        found = syntax_of_fragments(pixels.value)
        if found is not None:
            return found
    implicit, little = dataset.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _check_deflated(data: bytes, limits: DecodeLimits) -> None:
    """Refuse a bomb: pydicom inflates all at once (PS3.5, A.5)."""
    if data.find(DeflatedExplicitVRLittleEndian.encode(), 0, _meta_end(data)) < 0:
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


def _meta_end(data: bytes) -> int:
    """Where the meta information ends; the end of the data where it is not as the standard's."""
    at = 132 if data[128:132] == b"DICM" else 0
    while data[at : at + 2] == b"\2\0":
        vr, start = data[at + 4 : at + 6], at + 8
        if vr in _META_VRS:
            at = start + int.from_bytes(data[at + 6 : start], "little")
        elif vr == b"OB":
            at = start + 4 + int.from_bytes(data[start : start + 4], "little")
        else:
            return len(data)
    return at


def _quiet_pydicom() -> None:
    """Its warnings and log lines quote values of tags."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logger = logging.getLogger("pydicom")
    if logger.level <= logging.CRITICAL:  # setting it anew empties the caches of all loggers
        logger.setLevel(logging.CRITICAL + 1)
    if _UNHEARD not in warnings.filters:  # adding it again would repeat everybody's warnings
        warnings.filterwarnings("ignore", module=_UNHEARD[3].pattern)
