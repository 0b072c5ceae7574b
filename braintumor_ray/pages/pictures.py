"""Small pictures of scans for pages, and pictures as data URIs."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from braintumor_ray.decode.decode import decode
from braintumor_ray.decode.reading import read_file
from braintumor_ray.decode.sandbox import DecodeSandbox
from braintumor_ray.decode.types import DecodeLimits, unmark

WORKER = "braintumor_ray.pages.pictures:shrink_file"
Picture = NDArray[np.uint8]


def shrink_file(data: bytes | None, options: dict[str, Any]) -> Picture | None:
    """Decode one frame and shrink it; runs in the decoding process.

    Args:
        data: the whole file.
        options: `frame`, `longest` (pixels of the longer side), `max_bytes`, `max_pixels`,
            `volumes`.

    Returns:
        uint8 (h, w), aspect kept, never enlarged; None where the scan cannot be read.
    """
    limits = DecodeLimits(options["max_bytes"], options["max_pixels"])
    decoded = decode(data, frame=options["frame"], limits=limits, volumes=options["volumes"])
    return None if decoded.gray is None else shrunk(decoded.gray, options["longest"])


def shrunk(gray: Picture, longest: int) -> Picture:
    """A gray or RGB picture scaled down so that its longer side has at most `longest` pixels."""
    height, width = gray.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return gray
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def load_pictures(
    rows: pa.Table, longest: int, limits: DecodeLimits | None = None
) -> list[Picture | None]:
    """Small gray pictures of some scans, in order.

    Args:
        rows: with columns `uri` and `frame`; each file is read once per row.
        longest: pixels of the longer side.
        limits: what a file may cost.

    Returns:
        uint8 (h, w) each, None where the scan cannot be read.
    """
    allowed = limits or DecodeLimits()
    options = {
        "longest": longest,
        "max_bytes": allowed.max_bytes,
        "max_pixels": allowed.max_pixels,
    }
    with ThreadPoolExecutor(8) as pool, DecodeSandbox(WORKER) as sandbox:
        uris = rows["uri"].to_pylist()
        contents = pool.map(lambda uri: read_file(uri, allowed).data, uris)
        items = [
            (data, {**options, "frame": frame, "volumes": unmark(uri)[1]})
            for data, frame, uri in zip(contents, rows["frame"].to_pylist(), uris, strict=True)
        ]
        return [outcome.value for outcome in sandbox.map(items)]


def side_by_side(pictures: Sequence[Picture], gap: int = 4) -> Picture:
    """Gray pictures in a row on black, at the height of the tallest, uint8 (h, w)."""
    height = max(picture.shape[0] for picture in pictures)
    padded = []
    for picture in pictures:
        above = (height - picture.shape[0]) // 2
        below = height - picture.shape[0] - above
        padded.append(np.pad(picture, ((above, below), (0, gap))))
    return np.concatenate(padded, axis=1)[:, :-gap]


def jpeg_uri(picture: Picture, quality: int = 82) -> str:
    """A gray (h, w) or RGB (h, w, 3) picture as a data URI, for photographs."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def svg_uri(svg: str) -> str:
    """An SVG document as a data URI."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
