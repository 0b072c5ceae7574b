"""From one file to network inputs: what the decoding process does with each file."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from braintumor_ray.data.decode import DecodeLimits, decode
from braintumor_ray.data.duplicates import pixel_sha256
from braintumor_ray.data.preprocess import GrayImage, Preprocessing

WORKER = "braintumor_ray.data.prepare:prepare_file"


@dataclass(frozen=True)
class Prepared:
    """One scan, decoded and resized, or why not.

    Attributes:
        status: 'ok', 'quarantined' or 'skipped'.
        reason: one sentence where the status is not 'ok'.
        image: uint8 (S, S), None where not 'ok'.
        height, width: of the decoded image at full size, pixels; None where not 'ok'.
        pixel_sha256: of the decoded image at full size.
    """

    status: str
    reason: str | None = None
    image: GrayImage | None = None
    height: int | None = None
    width: int | None = None
    pixel_sha256: str | None = None


def prepare_file(data: bytes | None, options: dict[str, Any]) -> list[Prepared]:
    """Decode the wanted frames of one file and resize them for the network.

    Args:
        data: the whole file, None where it could not be read.
        options: from `worker_options`.

    Returns:
        One result per wanted frame, in order; never raises for a bad file.
    """
    preprocessing = Preprocessing.from_dict(options["preprocessing"])
    limits = DecodeLimits(options["max_bytes"], options["max_pixels"])
    return [_prepare(data, frame, preprocessing, limits) for frame in options["frames"]]


def worker_options(
    frames: Iterable[int], preprocessing: Preprocessing, limits: DecodeLimits
) -> dict[str, Any]:
    """Options for `prepare_file`, as plain values."""
    return {
        "frames": list(frames),
        "preprocessing": preprocessing.to_dict(),
        "max_bytes": limits.max_bytes,
        "max_pixels": limits.max_pixels,
    }


def decode_version(preprocessing: Preprocessing) -> str:
    """Names what `prepare_file` makes of a file, for caches of its output."""
    text = f"1 {np.uint8.__name__} {sorted(preprocessing.to_dict().items())}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _prepare(
    data: bytes | None, frame: int, preprocessing: Preprocessing, limits: DecodeLimits
) -> Prepared:
    decoded = decode(data, frame=frame, limits=limits)
    if decoded.gray is None:
        return Prepared(decoded.status, decoded.reason)
    height, width = decoded.gray.shape
    return Prepared(
        "ok",
        image=preprocessing.resize(decoded.gray),
        height=height,
        width=width,
        pixel_sha256=pixel_sha256(decoded.gray),
    )
