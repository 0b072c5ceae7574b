"""Layouts of TIFF and PNG that Pillow does not read alike: each gives what its plain twin gives."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from braintumor_ray.decode import tiff
from braintumor_ray.decode.decode import decode, decode_frames, probe
from braintumor_ray.decode.types import DecodeOptions
from tests.decode.mutations import slice_like

H, W = 64, 48
GRAY = slice_like(np.random.default_rng(3), H, W)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    b'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    b'tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def tiff_bytes(bits, samples, separate, orientation, xmp):
    """GRAY as a TIFF of one strip for each plane; a fourth sample is opaque."""
    kind = {8: "u1", 16: "<u2"}[bits]
    full = 257 if bits == 16 else 1
    opaque = np.full_like(GRAY, 255)
    planes = [(p.astype(np.uint16) * full).astype(kind) for p in [GRAY] * 3 + [opaque]][:samples]
    parts = planes if separate else [np.stack(planes, axis=-1)]
    pixels = b"".join(part.tobytes() for part in parts)
    size = len(pixels) // len(parts)
    offsets = [8 + k * size for k in range(len(parts))]
    tags = [(256, "H", [W]), (257, "H", [H]), (258, "H", [bits] * samples), (259, "H", [1])]
    tags += [(262, "H", [1 if samples == 1 else 2]), (273, "I", offsets)]
    tags += [(274, "H", [orientation]), (277, "H", [samples]), (278, "H", [H])]
    tags += [(279, "I", [size] * len(parts)), (284, "H", [2 if separate else 1])]
    tags += [(338, "H", [2])] if samples == 4 else []
    tags += [(700, "B", list(xmp))] if xmp else []
    directory, behind = struct.pack("<H", len(tags)), pixels
    for tag, letter, values in tags:
        packed = struct.pack(f"<{len(values)}{letter}", *values)
        if len(packed) > 4:
            packed, behind = struct.pack("<I", 8 + len(behind)), behind + packed
        number = {"B": 1, "H": 3, "I": 4}[letter]
        directory += struct.pack("<HHI", tag, number, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8 + len(behind)) + behind + directory + bytes(4)


TURNED = {1: GRAY, 3: GRAY[::-1, ::-1], 6: GRAY[::-1].T}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("samples", "separate"), [(1, False), (3, False), (4, False), (3, True), (4, True)]
)
@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("xmp", [None, XMP])
def test_a_tiff_shows_the_same_however_it_is_stored(bits, samples, separate, orientation, xmp):
    found = decode(tiff_bytes(bits, samples, separate, orientation, xmp))
    assert found.reason is None
    np.testing.assert_array_equal(found.gray, TURNED[orientation])


def test_the_pages_of_a_stack_are_parsed_once(monkeypatch):
    stack = [slice_like(np.random.default_rng(k), 20, 24) for k in range(40)]
    buffer = io.BytesIO()
    first, *others = map(Image.fromarray, stack)
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    parsed = []
    fields = tiff._fields
    monkeypatch.setattr(tiff, "_fields", lambda *given: parsed.append(1) or fields(*given))
    loads = []
    load = tiff.TiffImageFile._seek
    monkeypatch.setattr(
        tiff.TiffImageFile, "_seek", lambda self, frame: loads.append(1) or load(self, frame)
    )
    frames = (*range(40), 3, 3, 39)
    found = decode_frames(buffer.getvalue(), DecodeOptions(frames=frames))
    for frame, decoded in zip(frames, found, strict=True):
        np.testing.assert_array_equal(decoded.gray, stack[frame])
    assert len(parsed) == 40
    assert len(loads) < 3 * len(frames) + 40


def chunk(kind, content):
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(bits, colors, *, after=None, transparent=None):
    """GRAY as a PNG that says it lies on its side, before the pixels or after them."""
    wide = GRAY.astype(">u2") * 257 if bits == 16 else GRAY
    pixels = np.stack([wide] * 3, axis=-1) if colors else wide
    lines = np.ascontiguousarray(pixels, wide.dtype)
    rows = b"".join(b"\0" + line.tobytes() for line in lines)
    exif = Image.Exif()
    exif[0x0112] = 6
    note = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    data = b"\x89PNG\r\n\x1a\n"
    data += chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, bits, 2 if colors else 0, 0, 0, 0))
    if transparent is not None:
        level = struct.pack(">H", transparent * (257 if bits == 16 else 1))
        data += chunk(b"tRNS", level * (3 if colors else 1))
    data += note * (after is False) + chunk(b"IDAT", zlib.compress(rows)) + note * (after is True)
    return data + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colors", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_png_is_turned_wherever_its_note_is(bits, colors, after):
    data = png(bits, colors, after=after)
    np.testing.assert_array_equal(decode(data).gray, TURNED[6])
    assert (probe(data).height, probe(data).width) == (W, H)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colors", [False, True])
def test_a_level_of_a_png_that_is_transparent_is_black(bits, colors):
    level = int(GRAY.max())
    found = decode(png(bits, colors, transparent=level)).gray
    np.testing.assert_array_equal(found, np.where(level == GRAY, 0, GRAY))


@pytest.mark.parametrize("level", [0, 3, 15])
def test_a_level_of_4_bits_that_is_transparent_is_black(level):
    gray = np.add.outer(np.arange(H), np.arange(W // 2 * 2)).astype(np.uint8) % 16
    rows = b"".join(b"\0" + line.tobytes() for line in gray[:, ::2] << 4 | gray[:, 1::2])
    size = struct.pack(">IIBBBBB", gray.shape[1], H, 4, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"tRNS", bytes([0, level]))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(data).gray, np.where(gray == level, 0, gray * 17))


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_deflate"])
@pytest.mark.parametrize("image", [Image.fromarray(GRAY), Image.fromarray(GRAY / np.float32(7))])
def test_a_damaged_deflated_tiff_never_gives_other_pixels(image, compression):
    stored = io.BytesIO()
    image.save(stored, "TIFF", compression=compression, append_images=[image], save_all=True)
    whole, rng = stored.getvalue(), np.random.default_rng(4)
    expected = decode(whole).gray
    for page in tiff.parsed_pages(whole)[0]:
        (at, count, _), (sizes, _, _) = page.fields[273], page.fields[279]
        assert count == 1
        start, size = (struct.unpack_from("<I", whole, place)[0] for place in (at, sizes))
        for flipped in rng.integers(start, start + size, 60):
            data = bytearray(whole)
            data[flipped] ^= 1 << rng.integers(8)
            found = [decode(bytes(data), frame=frame) for frame in (0, 1)]
            assert {scan.status for scan in found} <= {"ok", "quarantined"}
            assert [scan.status for scan in found].count("ok") == 1, "the other page is whole"
            for scan in found:
                assert scan.gray is None or (scan.gray == expected).all()
