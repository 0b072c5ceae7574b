"""The elements of an explicit little endian DICOM file, to put in what pydicom would not write."""

import struct
from dataclasses import dataclass, replace

LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
UNDEFINED = 0xFFFFFFFF
START = 132


@dataclass(frozen=True)
class Element:
    """Tag, VR and the bytes of a value; `undefined` where its length is not written."""

    tag: int
    vr: bytes
    value: bytes
    undefined: bool = False

    def packed(self) -> bytes:
        head = struct.pack("<HH2s", self.tag >> 16, self.tag & 0xFFFF, self.vr)
        if self.vr not in LONG:
            return head + struct.pack("<H", len(self.value)) + self.value
        length = UNDEFINED if self.undefined else len(self.value)
        return head + struct.pack("<HI", 0, length) + self.value


def elements(data: bytes) -> list[Element]:
    """Every element at the top, meta information included; what follows pixels goes with them."""
    found, at = [], START
    while at < len(data):
        group, number, vr = struct.unpack_from("<HH2s", data, at)
        tag = group << 16 | number
        if vr in LONG:
            length, at = struct.unpack_from("<I", data, at + 8)[0], at + 12
        else:
            length, at = struct.unpack_from("<H", data, at + 6)[0], at + 8
        undefined = length == UNDEFINED
        length = len(data) - at if undefined else length
        found.append(Element(tag, vr, data[at : at + length], undefined))
        at += length
    return found


def joined(found: list[Element]) -> bytes:
    """The inverse of `elements`; the length of the meta information is that of its elements."""
    meta = [e for e in found if e.tag >> 16 == 2 and e.tag != 0x00020000]
    length = struct.pack("<I", sum(len(e.packed()) for e in meta))
    kept = [replace(e, value=length) if e.tag == 0x00020000 else e for e in found]
    return bytes(128) + b"DICM" + b"".join(e.packed() for e in kept)


def with_element(data: bytes, tag: int, vr: bytes, value: bytes) -> bytes:
    """The file with one element more, or another in its place."""
    rest = [element for element in elements(data) if element.tag != tag]
    return joined(sorted([*rest, Element(tag, vr, value)], key=lambda element: element.tag))
