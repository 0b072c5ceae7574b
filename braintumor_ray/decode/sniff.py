"""Which format a file is in, by its first bytes."""

import struct
import zlib

_MAGIC = (
    (b"\xff\xd8", "jpeg"),
    (b"\x89PNG", "png"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),  # BigTIFF
    (b"MM\0+", "tiff"),
    (b"\x89HDF\r\n\x1a\n", "matlab"),  # without MATLAB's block of 512 bytes, as others write it
)
_HDF = b"\x89HDF"
_MATLAB_BLOCK = 512
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)  # "BM" alone begins many a text
_FOREIGN_FORMATS = (
    (b"PK", "'PK' (zip archive)"),
    (b"%PDF", "'%PDF' (PDF document)"),
    (b"GIF8", "'GIF8' (GIF is not readable here)"),
    (b"RIFF", "'RIFF' (WebP and other RIFF files are not readable here)"),
    (b"\x1f\x8b", "the gzip magic, and no NIfTI inside"),
    (b"\0\0\0\x0cjP  ", "the JPEG 2000 magic (readable here only inside DICOM)"),
    (b"MATLAB", "'MATLAB' (MAT-file before 7.3: save it with -v7.3, or see docs/datasets.md)"),
    (b"\x7fELF", "'ELF' (program)"),
    (b"<", "'<' (markup text)"),
    (b"\0\0\0\0", "zero bytes"),
)
_NIFTI_HEAD = 348
_SHORT_VRS = {  # two-byte length (PS3.5, 7.1.2)
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN"),
    *(b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
_LONG_VRS = {
    *(b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"),
}
_FIRST = {  # what an object without preamble may begin with: all lower elements are retired
    *((2, element) for element in (0, 1, 2, 3, 0x10)),
    *((8, element) for element in (0, 1, 5, 6, 8, 0x12, 0x13, 0x14, 0x15, 0x16, 0x18, 0x20)),
}
_UNDEFINED = 0xFFFFFFFF
_MOST_VALUE = 2**20


def sniff(data: bytes) -> str | None:
    """The format's name by content (see `Decoded.format`), or None.

    Reads a few hundred bytes, but of DICOM without preamble up to the second element.
    """
    if data[128:132] == b"DICM":  # PS3.10: the preamble before it may look like a TIFF
        return "dicom"
    if _is_bare_dicom(data):
        return "dicom"
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data.startswith(b"MATLAB") and data[_MATLAB_BLOCK : _MATLAB_BLOCK + 4] == _HDF:
        return "matlab"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "bmp"
    head = _gunzipped_head(data)
    return "nifti" if _is_nifti(head) or _is_analyze(head) else None


def foreign_format(data: bytes) -> str | None:
    """How a file of no known format begins, in words for a reason; None where that says nothing."""
    return next((words for magic, words in _FOREIGN_FORMATS if data.startswith(magic)), None)


def _is_bare_dicom(data: bytes) -> bool:
    """DICOM without preamble begins with its meta or identifying elements (PS3.5, 7.1)."""
    if data[:1] not in (b"\x02", b"\x08", b"\0"):
        return False
    for order in "<>":
        first = dicom_element(data, 0, order)
        if first is None or first[:2] not in _FIRST:
            continue
        second = dicom_element(data, first[3], order)
        if second and first[:2] < second[:2] < (0x7FE1, 0) and second[0] % 2 == 0:
            return True
    return False


def dicom_element(data: bytes, at: int, order: str) -> tuple[int, int, int, int] | None:
    """Group, element, and start and end of the value of a plausible data element, or None."""
    if len(data) < at + 8:
        return None
    group, element, implicit = struct.unpack_from(f"{order}HHI", data, at)
    vr, start, length = data[at + 4 : at + 6], at + 8, implicit
    if vr in _SHORT_VRS:
        length = struct.unpack_from(f"{order}H", data, at + 6)[0]
    elif vr in _LONG_VRS and data[at + 6 : at + 8] == b"\0\0" and len(data) >= at + 12:
        length, start = struct.unpack_from(f"{order}I", data, at + 8)[0], at + 12
    if length == _UNDEFINED and at:
        return group, element, start, start  # a sequence: none of the first elements is one
    return (group, element, start, start + length) if length <= _MOST_VALUE else None


def _gunzipped_head(data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data[:_NIFTI_HEAD]
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data[:4096], _NIFTI_HEAD)
    except zlib.error:
        return b""  # not gzip after all: no head to recognize


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def _is_analyze(head: bytes) -> bool:
    """The header of an Analyze 7.5 pair, which has no magic: its size, and a likely rank."""
    if len(head) < _NIFTI_HEAD:
        return False
    for order in "<>":
        size, rank = struct.unpack_from(f"{order}i36xh", head)
        if size == _NIFTI_HEAD and 1 <= rank <= 7:
            return True
    return False
