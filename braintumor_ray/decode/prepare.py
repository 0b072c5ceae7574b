"""From one file to network inputs: what the decoding process does with each file."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from braintumor_ray.decode.decode import decode_frames
from braintumor_ray.decode.hashes import pack_hashes, pixel_sha256
from braintumor_ray.decode.preprocess import GrayImage, Preprocessing
from braintumor_ray.decode.types import DEFAULT_VOLUMES, Decoded, DecodeLimits, VolumeOptions

WORKER = "braintumor_ray.decode.prepare:prepare_file"
HASHING_WORKER = "braintumor_ray.decode.prepare:prepare_and_hash_file"


@dataclass(frozen=True)
class PreparedScan:
    """One scan, decoded and resized, or why not.

    Attributes:
        status: 'ok', 'quarantined' or 'skipped'.
        reason: one sentence where the status is not 'ok'.
        image: uint8 (S, S), None where not 'ok'.
        height, width: of the decoded image at full size, pixels; None where not 'ok'.
        pixel_sha256: of the decoded image at full size.
        hashes: perceptual hashes, see `pack_hashes`; only from `prepare_and_hash_file`.
    """

    status: str
    reason: str | None = None
    image: GrayImage | None = None
    height: int | None = None
    width: int | None = None
    pixel_sha256: str | None = None
    hashes: bytes | None = None


def prepare_file(data: bytes | None, options: dict[str, Any]) -> list[PreparedScan]:
    """Decode the wanted frames of one file and resize them for the network.

    Args:
        data: the whole file, None where it could not be read.
        options: from `worker_options`.

    Returns:
        One result per wanted frame, in order; never raises for a bad file.
    """
    return _prepare_file(data, options, hashed=False)


def prepare_and_hash_file(data: bytes | None, options: dict[str, Any]) -> list[PreparedScan]:
    """As `prepare_file`, with the perceptual hashes that find near-duplicates."""
    return _prepare_file(data, options, hashed=True)


def worker_options(
    frames: Iterable[int],
    preprocessing: Preprocessing,
    limits: DecodeLimits,
    volumes: VolumeOptions = DEFAULT_VOLUMES,
) -> dict[str, Any]:
    """Options for `prepare_file`, as plain values."""
    return {
        "frames": list(frames),
        "preprocessing": preprocessing.to_dict(),
        "max_bytes": limits.max_bytes,
        "max_pixels": limits.max_pixels,
        "plane": volumes.plane,
        "volume": volumes.volume,
    }


def decode_version(preprocessing: Preprocessing) -> str:
    """Names what `prepare_file` makes of a file, for caches of its output."""
    text = f"1 {np.uint8.__name__} {sorted(preprocessing.to_dict().items())}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _prepare_file(
    data: bytes | None, options: dict[str, Any], *, hashed: bool
) -> list[PreparedScan]:
    preprocessing = Preprocessing.from_dict(options["preprocessing"])
    decoded = decode_frames(
        data,
        options["frames"],
        limits=DecodeLimits(options["max_bytes"], options["max_pixels"]),
        volumes=VolumeOptions(options["plane"], options["volume"]),
    )
    return [_prepare(scan, preprocessing, hashed=hashed) for scan in decoded]


def _prepare(decoded: Decoded, preprocessing: Preprocessing, *, hashed: bool) -> PreparedScan:
    if decoded.gray is None:
        return PreparedScan(decoded.status, decoded.reason)
    height, width = decoded.gray.shape
    return PreparedScan(
        "ok",
        image=preprocessing.resize(decoded.gray),
        height=height,
        width=width,
        pixel_sha256=pixel_sha256(decoded.gray),
        hashes=pack_hashes(decoded.gray) if hashed else None,
    )
