"""Small synthetic images, whole and damaged in known ways, the same for the same seed.

`intact_images` must all decode; `mutated_images` must each give a reason, except for the kinds in
`MAY_DECODE`, which give a reason or pixels.
"""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

Named = tuple[str, bytes, str]  # file name, content, kind

MAY_DECODE = frozenset({"flipped_bits", "wrong_extension"})
_FORMATS = (("JPEG", "jpg"), ("PNG", "png"), ("TIFF", "tif"), ("BMP", "bmp"))


def intact_images(seed: int, n: int) -> list[Named]:
    """`n` readable images in turn JPEG, PNG, TIFF, BMP; no two with the same pixels."""
    rng = np.random.default_rng(seed)
    return [
        (f"intact_{i:04d}.{extension}", encode(slice_like(rng), name), "intact")
        for i, (name, extension) in enumerate(_FORMATS[k % 4] for k in range(n))
    ]


def mutated_images(seed: int, n: int) -> list[Named]:
    """`n` damaged or misnamed files, the kinds in turn; the kind is in the name as well."""
    rng = random.Random(seed)
    makers = list(_MAKERS.items())
    files = []
    for i, (name, content, _) in enumerate(intact_images(seed + 1, n)):
        kind, make = makers[i % len(makers)]
        new_name, damaged = make(rng, name, content)
        files.append((f"{i:04d}_{kind}_{new_name}", damaged, kind))
    return files


def slice_like(rng: np.random.Generator, height: int = 0, width: int = 0) -> np.ndarray:
    """uint8 (H, W): a bright noisy ellipse with a brighter spot on black; sides 64 to 160."""
    height = height or int(rng.integers(64, 160))
    width = width or int(rng.integers(64, 160))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    head = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    cx, cy = rng.uniform(-0.3, 0.3, 2)
    spot = (x - cx) ** 2 + (y - cy) ** 2 < 0.03
    gray = head * (90 + 60 * spot + rng.normal(0, 12, (height, width)))
    return gray.clip(0, 255).astype(np.uint8)


def encode(gray: np.ndarray, name: str, **options) -> bytes:
    """Encode with Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, name, **options)
    return buffer.getvalue()


def bomb_png(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few KB, every checksum right, whose header asks for `width` x `height` RGBA."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(2_000_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def _truncated(rng, name, content):
    return name, content[: max(20, int(len(content) * rng.uniform(0.02, 0.95)))]


def _flipped_bits(rng, name, content):
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 3, 20, 200))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return name, bytes(damaged)


def _empty(rng, name, content):
    return name, b""


def _wrong_extension(rng, name, content):
    stem = name.rsplit(".", 1)[0]
    return f"{stem}.{rng.choice(('jpg', 'png', 'tif', 'bmp', 'dcm'))}", content


def _not_an_image(rng, name, content):
    return name, rng.choice(
        (b"PK\x03\x04" + bytes(40), b"%PDF-1.7\n", b"<html></html>", bytes(500))
    )


def _bomb(rng, name, content):
    return name, bomb_png(60_000, 60_000 - rng.randrange(1000))


def _header_only(rng, name, content):
    return name, content[: rng.randrange(2, 20)]


def _zero_tail(rng, name, content):
    """A JPEG whose later part was never written: allocated, full of zeros."""
    jpeg = _as_jpeg(content)
    cut = rng.randrange(len(jpeg) // 2, len(jpeg) * 9 // 10)
    return "zero_tail.jpg", jpeg[:cut] + bytes(len(jpeg) - cut)


def _hollow(rng, name, content):
    """A JPEG that lost pixel data from its middle but has its end marker."""
    jpeg = _as_jpeg(content)
    scan = jpeg.rfind(b"\xff\xda") + 14
    return "hollow.jpg", jpeg[: scan + (len(jpeg) - scan) // rng.randrange(2, 5)] + jpeg[-2:]


def _as_jpeg(content: bytes) -> bytes:
    return encode(np.asarray(Image.open(io.BytesIO(content))), "JPEG")


_MAKERS = {
    "truncated": _truncated,
    "flipped_bits": _flipped_bits,
    "empty": _empty,
    "wrong_extension": _wrong_extension,
    "not_an_image": _not_an_image,
    "bomb": _bomb,
    "header_only": _header_only,
    "zero_tail": _zero_tail,
    "hollow": _hollow,
}
