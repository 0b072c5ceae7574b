"""Reading and preparing the scans of a block of catalog rows: each file opened once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice

import pyarrow as pa

from braintumor_ray.decode.prepare import HASHING_WORKER, PreparedScan, worker_options
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.sandbox import DecodeSandbox
from braintumor_ray.decode.types import DecodeLimits, VolumeOptions, unmark
from braintumor_ray.storage import open_filesystem

_READ_AHEAD = 8  # files being read while others are decoded; hides an object store's latency


@dataclass(frozen=True)
class FileFrames:
    """Neighboring catalog rows of one file."""

    uri: str
    frames: tuple[int, ...]

    @property
    def volumes(self) -> VolumeOptions:
        """How the file's volume is cut, as its URI says."""
        return unmark(self.uri)[1]


@dataclass(frozen=True)
class FileContent:
    """The bytes of a file, or why they could not be had."""

    data: bytes | None
    reason: str | None = None


def group_frames(uris: Sequence[str], frames: Sequence[int]) -> list[FileFrames]:
    """Neighboring rows of the same file together, so that it is opened once."""
    pairs = zip(uris, frames, strict=True)
    return [
        FileFrames(uri, tuple(frame for _, frame in group))
        for uri, group in groupby(pairs, key=lambda pair: pair[0])
    ]


def read_file(uri: str, limits: DecodeLimits) -> FileContent:
    """The whole file; the reason names no path. How a volume is cut may stand in the URI."""
    try:
        filesystem, path = open_filesystem(unmark(uri)[0])
        with filesystem.open_input_file(path) as stream:
            size = stream.size()
            if size > limits.max_bytes:
                return FileContent(None, f"{size} bytes is over the limit of {limits.max_bytes}")
            return FileContent(stream.read())
    except FileNotFoundError:
        return FileContent(None, "file not found (deleted or moved since it was catalogued)")
    except PermissionError:
        return FileContent(None, "file not readable: permission denied")
    except OSError as error:
        return FileContent(None, f"file not readable: {type(error).__name__}")


def prepare_scans(
    files: Iterable[FileFrames],
    sandbox: DecodeSandbox,
    preprocessing: Preprocessing,
    limits: DecodeLimits,
) -> Iterator[PreparedScan]:
    """One result per frame, in order; a file that kills its decoder costs only its own rows."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        for batch in _batches(files, 4 * _READ_AHEAD):
            contents = list(pool.map(lambda file: read_file(file.uri, limits), batch))
            items = [
                (content.data, worker_options(file.frames, preprocessing, limits, file.volumes))
                for file, content in zip(batch, contents, strict=True)
                if content.reason is None
            ]
            outcomes = sandbox.map(items)
            for file, content in zip(batch, contents, strict=True):
                if content.reason is not None:
                    yield from [PreparedScan("quarantined", content.reason)] * len(file.frames)
                    continue
                outcome = next(outcomes)
                if outcome.reason is not None:
                    yield from [PreparedScan("quarantined", outcome.reason)] * len(file.frames)
                else:
                    yield from outcome.value
            outcomes.close()  # type: ignore[attr-defined]


def _batches(files: Iterable[FileFrames], size: int) -> Iterator[list[FileFrames]]:
    source = iter(files)
    while batch := list(islice(source, size)):
        yield batch


# The square is not used here; the smallest costs least.
_THUMBNAIL = Preprocessing(32, "area", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def hash_scans(catalog: pa.Table, progress: Callable[[int, int], None] | None = None) -> pa.Table:
    """Decode every scan; columns scan_id, status, reason, pixel_sha256 and hashes.

    The hashes are those of `data.prepare.pack_hashes`, null where the status is not ok.
    """
    files = group_frames(catalog["uri"].to_pylist(), catalog["frame"].to_pylist())
    rows = []
    with DecodeSandbox(HASHING_WORKER) as sandbox:
        for scan in prepare_scans(files, sandbox, _THUMBNAIL, DecodeLimits()):
            rows.append((scan.status, scan.reason, scan.pixel_sha256, scan.hashes))
            if progress:
                progress(len(rows), catalog.num_rows)
    status, reason, digest, hashes = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pa.table(
        {
            "scan_id": catalog["scan_id"],
            "status": pa.array(status, pa.string()),
            "reason": pa.array(reason, pa.string()),
            "pixel_sha256": pa.array(digest, pa.string()),
            "hashes": pa.array(hashes, pa.binary()),
        }
    )
