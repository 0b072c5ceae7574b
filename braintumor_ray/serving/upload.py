"""What the decoding process does with an upload: as the archive job, plus what a client is told."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from braintumor_ray.decode.decode import decode, probe
from braintumor_ray.decode.prepare import prepare_file, worker_options
from braintumor_ray.decode.preprocess import GrayImage, Preprocessing
from braintumor_ray.decode.sniff import sniff
from braintumor_ray.decode.types import DecodeLimits, Plane, VolumeOptions

WORKER = "braintumor_ray.serving.upload:decode_upload"
PICTURE_SIDE = 1024  # longest side of the pictures in a response, pixels


@dataclass(frozen=True)
class Upload:
    """An upload, decoded, or what to tell the client.

    Attributes:
        image: uint8 (S, S) for the network; None where there is none.
        height, width: of the decoded image at full size, pixels.
        pixel_sha256: of the decoded image at full size, as in the archive job's rows.
        format: what the content is, see `data.decode.Decoded`.
        picture: uint8 (h, w), the scan with its longest side at most 1024, where it was wanted.
        kind: kind of problem (`problems.KINDS`) where there is no image.
        reason: the decoder's sentence where there is no image.
    """

    image: GrayImage | None = None
    height: int | None = None
    width: int | None = None
    pixel_sha256: str | None = None
    format: str | None = None
    picture: GrayImage | None = None
    kind: str | None = None
    reason: str | None = None


def upload_options(
    frame: int,
    volumes: VolumeOptions,
    preprocessing: Preprocessing,
    limits: DecodeLimits,
    picture: bool,
) -> dict[str, Any]:
    """Options for `decode_upload`, as plain values."""
    options = worker_options([frame], preprocessing, limits, volumes)
    return options | {"picture": picture}


def decode_upload(data: bytes | None, options: dict[str, Any]) -> Upload:
    """Decode one frame exactly as the archive job does; never raises for a bad file.

    Args:
        data: the whole file.
        options: from `upload_options`.
    """
    prepared = prepare_file(data, options)[0]
    content = data or b""
    kind = sniff(content)
    if prepared.image is None:
        problem = _problem(content, kind, prepared.status, options)
        return Upload(format=kind, kind=problem, reason=prepared.reason)
    picture = _picture(content, options) if options["picture"] else None
    return Upload(
        prepared.image, prepared.height, prepared.width, prepared.pixel_sha256, kind, picture
    )


def _problem(data: bytes, kind: str | None, status: str, options: dict[str, Any]) -> str:
    if status == "skipped":
        return "not-scored"
    if kind is None:
        return "not-an-image" if data else "unreadable"
    header = probe(data, volumes=_volumes(options))
    if header.width * header.height > options["max_pixels"]:
        return "too-many-pixels"
    if 0 < header.frames <= options["frames"][0]:
        return "parameter"
    if options["volume"] and probe(data, volumes=VolumeOptions(options["plane"])).reason is None:
        return "parameter"  # the file is readable: it is the volume that it does not have
    return "unreadable"


def _picture(data: bytes, options: dict[str, Any]) -> GrayImage | None:
    limits = DecodeLimits(options["max_bytes"], options["max_pixels"])
    gray = decode(data, frame=options["frames"][0], limits=limits, volumes=_volumes(options)).gray
    if gray is None:
        return None
    scale = PICTURE_SIDE / max(gray.shape)
    if scale >= 1:
        return gray
    size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)


def _volumes(options: dict[str, Any]) -> VolumeOptions:
    plane: Plane = options["plane"]
    return VolumeOptions(plane, options["volume"])
