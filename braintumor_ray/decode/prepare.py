"""From one file to network inputs: what the decoding process does with each file."""

import hashlib
from dataclasses import dataclass

import numpy as np

from braintumor_ray.decode.decode import decode_frames
from braintumor_ray.decode.hashes import pack_hashes, pixel_sha256
from braintumor_ray.decode.head import Box
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.types import Decoded, DecodeOptions, Status
from braintumor_ray.types import GrayImage

WORKER = "braintumor_ray.decode.prepare:prepare_file"


@dataclass(frozen=True)
class PreparedScan:
    """One scan, decoded and resized, or why not.

    Attributes:
        status: 'ok', 'quarantined' or 'skipped'.
        reason: one sentence where the status is not 'ok'.
        image: uint8 (S, S), None where not 'ok'.
        box: the part of the picture that `image` shows; None where not 'ok'.
        height, width: of the decoded image at full size, pixels; None where not 'ok'.
        pixel_sha256: of the decoded image at full size.
        hashes: perceptual hashes, see `pack_hashes`; None unless asked for.
    """

    status: Status
    reason: str | None = None
    image: GrayImage | None = None
    height: int | None = None
    width: int | None = None
    pixel_sha256: str | None = None
    hashes: bytes | None = None
    box: Box | None = None


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(DecodeOptions):
    """What `prepare_file` makes of a file.

    Attributes:
        preprocessing: decides the square.
        hashed: also the perceptual hashes that find near-duplicates.
    """

    preprocessing: Preprocessing
    hashed: bool = False


def prepare_file(data: bytes | None, options: PrepareOptions) -> list[PreparedScan]:
    """Decode the wanted frames of one file and resize them for the network.

    Args:
        data: the whole file, None where it could not be read.
        options: frames and preprocessing.

    Returns:
        One result per wanted frame, in order; never raises for a bad file.
    """
    return [prepare(scan, options) for scan in decode_frames(data, options)]


def prepare(decoded: Decoded, options: PrepareOptions) -> PreparedScan:
    """Resize and hash one decoded frame."""
    if decoded.gray is None:
        return PreparedScan(decoded.status, decoded.reason)
    height, width = decoded.gray.shape
    square, box = options.preprocessing.square(decoded.gray)
    return PreparedScan(
        "ok",
        image=square,
        box=box,
        height=height,
        width=width,
        pixel_sha256=pixel_sha256(decoded.gray),
        hashes=pack_hashes(decoded.gray) if options.hashed else None,
    )


def decode_version(preprocessing: Preprocessing) -> str:
    """Names what `prepare_file` makes of a file, for caches of its output."""
    text = f"3 {np.uint8.__name__} {sorted(preprocessing.to_dict().items())}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
