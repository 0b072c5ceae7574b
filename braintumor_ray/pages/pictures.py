"""Small pictures of scans for pages, and pictures as data URIs."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from braintumor_ray.decode.decode import decode_frames
from braintumor_ray.decode.preprocess import Preprocessing, shrunk
from braintumor_ray.decode.reading import decode_scans, run_on_scans
from braintumor_ray.decode.sandbox import DecodeSandbox
from braintumor_ray.decode.types import DecodeLimits, DecodeOptions
from braintumor_ray.types import GrayImage

WORKER = "braintumor_ray.pages.pictures:shrink_file"
Picture = NDArray[np.uint8]
_GAP = 4  # pixels between pictures
_JPEG_QUALITY = 82


@dataclass(frozen=True, kw_only=True)
class ShrinkOptions(DecodeOptions):
    """What `shrink_file` makes of a file: pictures with at most `longest` pixels a side."""

    longest: int


def shrink_file(data: bytes | None, options: ShrinkOptions) -> list[Picture | None]:
    """Decode some frames and shrink them; runs in the decoding process.

    Args:
        data: the whole file.
        options: which frames, and how large.

    Returns:
        uint8 (h, w) each, aspect kept, never enlarged; None where the scan cannot be read.
    """
    return [
        None if decoded.gray is None else shrunk(decoded.gray, options.longest)
        for decoded in decode_frames(data, options)
    ]


def load_pictures(
    rows: pa.Table, longest: int, limits: DecodeLimits | None = None
) -> list[Picture | None]:
    """Small gray pictures of some scans, in order.

    Args:
        rows: as for `decode.files.files_of`.
        longest: pixels of the longer side.
        limits: what a file may cost.

    Returns:
        uint8 (h, w) each, None where the scan cannot be read.
    """
    options = ShrinkOptions(longest=longest, limits=limits or DecodeLimits())
    with DecodeSandbox(WORKER) as sandbox:
        return list(run_on_scans(rows, sandbox, options, lambda _: None))


def load_squares(
    rows: pa.Table, preprocessing: Preprocessing, limits: DecodeLimits | None = None
) -> Iterator[GrayImage]:
    """Scans that were read before, read again: uint8 (S, S) each, black where one cannot be."""
    for scan in decode_scans(rows, preprocessing, limits=limits):
        blank = np.zeros((preprocessing.image_size,) * 2, np.uint8)
        yield blank if scan.image is None else scan.image


def spread(values: NDArray[Any], most: int) -> NDArray[Any]:
    """At most `most` of some values (n,), at equal distances, the first and the last among them."""
    places = np.linspace(0, len(values) - 1, min(len(values), most)).round()
    return values[places.astype(np.int64)]


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """Pictures of one kind, gray or RGB, in a row on black, at the height of the tallest."""
    height = max(picture.shape[0] for picture in pictures)
    padded = []
    for picture in pictures:
        room = height - picture.shape[0]
        around = ((room // 2, room - room // 2), (0, _GAP), (0, 0))
        padded.append(np.pad(picture, around[: picture.ndim]))
    return np.concatenate(padded, axis=1)[:, :-_GAP]


def jpeg_uri(picture: Picture) -> str:
    """A gray (h, w) or RGB (h, w, 3) picture as a data URI, for photographs."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def svg_uri(svg: str) -> str:
    """An SVG document as a data URI."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
