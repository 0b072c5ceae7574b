"""Decoding of an upload as in the archive job, and the client's message when it fails."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from braintumor_ray.decode.decode import decode_frames, probe
from braintumor_ray.decode.prepare import PreparedScan, PrepareOptions, prepare
from braintumor_ray.decode.preprocess import shrunk
from braintumor_ray.decode.sniff import sniff
from braintumor_ray.types import GrayImage

WORKER = "braintumor_ray.serving.upload:work"
HAVE_FRAMES = ("dicom", "nifti", "tiff", "matlab")
PICTURE_SIDE = 1024  # longest side of the pictures in a response, pixels


@dataclass(frozen=True)
class Upload(PreparedScan):
    """An upload prepared as in the archive job, and what a client gets about it.

    Attributes:
        format: what the content is, see `decode.types.Decoded`.
        frames: in the file, cut as asked; counted where a picture was wanted.
        picture: uint8 (h, w), the scan with its longest side at most 1024, where it was wanted.
        kind: kind of problem (`problems.KINDS`) where there is no image.
    """

    format: str | None = None
    frames: int | None = None
    picture: GrayImage | None = None
    kind: str | None = None


@dataclass(frozen=True, kw_only=True)
class UploadOptions(PrepareOptions):
    """What `decode_upload` makes of a file: its first wanted frame, perhaps with a `picture`."""

    picture: bool = False


Task = Callable[[bytes | None], Any]  # other work that a decoding process can do; it pickles


def work(data: bytes | None, task: UploadOptions | Task) -> Any:  # noqa: ANN401 - the task's
    """What a decoding process does with a file: decodes it as options say, or does a task."""
    return decode_upload(data, task) if isinstance(task, UploadOptions) else task(data)


def decode_upload(data: bytes | None, options: UploadOptions) -> Upload:
    """Decode one frame exactly as the archive job does; never raises for a bad file.

    Args:
        data: the whole file.
        options: which frame, and what is made of it.
    """
    decoded = decode_frames(data, options)[0]
    prepared, content = vars(prepare(decoded, options)), data or b""
    kind = sniff(content)
    if decoded.gray is None:
        problem = _problem(content, kind, decoded.status, options)
        frames = _frames(content, kind, options) if problem == "not-scored" else None
        return Upload(**prepared, format=kind, kind=problem, frames=frames)
    if not options.picture:
        return Upload(**prepared, format=kind)
    frames = _frames(content, kind, options)
    picture = shrunk(decoded.gray, PICTURE_SIDE)
    return Upload(**prepared, format=kind, frames=frames, picture=picture)


def _frames(content: bytes, kind: str | None, options: UploadOptions) -> int:
    return probe(content, volumes=options.volumes).frames if kind in HAVE_FRAMES else 1


def _problem(data: bytes, kind: str | None, status: str, options: UploadOptions) -> str:
    if status == "skipped":
        return "not-scored"
    if kind is None:
        return "not-an-image" if data else "unreadable"
    header = probe(data, volumes=options.volumes)
    if header.width * header.height > options.limits.max_pixels:
        return "too-many-pixels"
    if 0 < header.frames <= options.frames[0]:
        return "parameter"
    first = replace(options.volumes, volume=0)
    if options.volumes != first and probe(data, volumes=first).reason is None:
        return "parameter"  # the file is readable, but has no such volume
    return "unreadable"
