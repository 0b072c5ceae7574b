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
)
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)  # "BM" alone begins many a text
_FOREIGN_FORMATS = (
    (b"PK", "'PK' (zip archive)"),
    (b"%PDF", "'%PDF' (PDF document)"),
    (b"GIF8", "'GIF8' (GIF is not readable here)"),
    (b"RIFF", "'RIFF' (WebP and other RIFF files are not readable here)"),
    (b"\x1f\x8b", "the gzip magic, and no NIfTI inside"),
    (b"\0\0\0\x0cjP  ", "the JPEG 2000 magic (readable here only inside DICOM)"),
    (b"MATLAB", "'MATLAB' (MAT-file: docs/datasets.md shows how to convert it)"),
    (b"\x7fELF", "'ELF' (program)"),
    (b"<", "'<' (markup text)"),
    (b"\0\0\0\0", "zero bytes"),
)
_NIFTI_HEAD = 348
_SHORT_VRS = (b"CS", b"DA", b"LO", b"PN", b"SH", b"TM", b"UI", b"UL", b"US")  # two-byte length


def sniff(data: bytes) -> str | None:
    """The format's name by content (see `Decoded.format`), or None; reads 400 bytes at most."""
    if data[128:132] == b"DICM":  # PS3.10: the preamble before it may look like a TIFF
        return "dicom"
    if _is_bare_dicom(data):
        return "dicom"
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "bmp"
    if _is_nifti(_gunzipped_head(data)):
        return "nifti"
    return None


def foreign_format(data: bytes) -> str | None:
    """How a file of no known format begins, in words for a reason; None where that says nothing."""
    return next((words for magic, words in _FOREIGN_FORMATS if data.startswith(magic)), None)


def _is_bare_dicom(data: bytes) -> bool:
    """DICOM without preamble begins with its meta or identifying elements (PS3.5, 7.1)."""
    for order in "<>":
        first = _short_element(data, 0, order)
        second = first and _short_element(data, first[2], order)
        if second and first and first[0] in (2, 8) and first[:2] < second[:2] < (0x10, 0):
            return True
    return False


def _short_element(data: bytes, at: int, order: str) -> tuple[int, int, int] | None:
    """Group, element and end of a data element of 64 bytes at most, or None."""
    if len(data) < at + 8 or at > 100:
        return None
    group, element, implicit = struct.unpack_from(f"{order}HHI", data, at)
    explicit = struct.unpack_from(f"{order}H", data, at + 6)[0]
    length = explicit if data[at + 4 : at + 6] in _SHORT_VRS else implicit
    return (group, element, at + 8 + length) if length <= 64 else None


def _gunzipped_head(data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data[:_NIFTI_HEAD]
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data[:4096], _NIFTI_HEAD)
    except zlib.error:
        return b""  # not gzip after all: no head to recognize


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")
