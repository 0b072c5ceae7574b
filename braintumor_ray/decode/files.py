"""Where the scans of catalog rows are, and the bytes of their files, read ahead."""

import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.decode.types import DEFAULT_VOLUMES, DecodeLimits, VolumeOptions
from braintumor_ray.storage import is_local, local_path, open_filesystem

SCAN_COLUMNS = ("uri", "frame", "volume_plane", "volume_index")  # what shows where a scan is
VOLUME_FIELDS = (pa.field("volume_plane", pa.string()), pa.field("volume_index", pa.int32()))
_THREADS = 8  # files being read while others are decoded; hides an object store's latency
_AT_A_TIME = 2  # files for a thread: handing over costs as much CPU as reading a small file
_AHEAD = 2 * _THREADS // _AT_A_TIME  # such pairs read or being read that nobody has taken yet
MARK = re.compile(r"#plane=(axial|coronal|sagittal)&volume=(\d+)$")


@dataclass(frozen=True)
class FileFrames:
    """Neighboring catalog rows of one file.

    Attributes:
        location: where its bytes are.
        frames: the wanted ones.
        volumes: how its volume is cut.
    """

    location: str
    frames: tuple[int, ...]
    volumes: VolumeOptions


@dataclass(frozen=True)
class FileContent:
    """The bytes of a file, or why they could not be had."""

    data: bytes | None
    reason: str | None = None


def with_volumes(rows: pa.Table) -> pa.Table:
    """The rows with the columns `volume_plane` and `volume_index`.

    Results, and catalogs made before there were these columns, have them at the end of their URIs.
    There they are null for a volume that is cut the default way.
    """
    if all(field.name in rows.column_names for field in VOLUME_FIELDS):
        return rows
    marks = [MARK.search(uri) for uri in rows["uri"].to_pylist()]
    planes = pa.array([mark and mark[1] for mark in marks], pa.string())
    indices = pa.array([mark and int(mark[2]) for mark in marks], pa.int32())
    for field, values in zip(VOLUME_FIELDS, (planes, indices), strict=True):
        rows = rows.append_column(field, values)
    return rows


def files_of(rows: pa.Table) -> list[FileFrames]:
    """Neighboring rows of the same file together, so that it is opened once.

    Args:
        rows: with `uri` and `frame`, and `volume_plane` and `volume_index` where they are known.
    """
    columns = [with_volumes(rows)[name].to_pylist() for name in SCAN_COLUMNS]
    files = []
    for (uri, plane, index), scans in groupby(zip(*columns, strict=True), itemgetter(0, 2, 3)):
        volumes = DEFAULT_VOLUMES if plane is None else VolumeOptions(plane, index or 0)
        frames = tuple(scan[1] for scan in scans)
        files.append(FileFrames(uri.removesuffix(volumes.mark), frames, volumes))
    return files


def without_volume(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """URIs of scans without the mark of how their volume is cut: slices of one file have one."""
    return pc.replace_substring_regex(uris, MARK.pattern, "")


def locations(rows: pa.Table) -> list[str]:
    """Where the file of each row is."""
    return [file.location for file in files_of(rows) for _ in file.frames]


def read_file(location: str, limits: DecodeLimits) -> FileContent:
    """The whole file; the reason names no path."""
    try:
        if is_local(location):
            return _read_local(location, limits)
        filesystem, path = open_filesystem(location)
        with filesystem.open_input_file(path) as stream:
            too_large = _why_too_large(stream.size(), limits)
            return FileContent(None, too_large) if too_large else FileContent(stream.read())
    except FileNotFoundError:
        return FileContent(None, "file not found (deleted or moved since it was catalogued)")
    except PermissionError:
        return FileContent(None, "file not readable: permission denied")
    except IsADirectoryError:
        return FileContent(None, "file not readable: OSError")  # as from an object store
    except OSError as error:
        return FileContent(None, f"file not readable: {type(error).__name__}")


def _read_local(location: str, limits: DecodeLimits) -> FileContent:
    # A fifth of the time that Arrow's file system takes for a small file.
    with open(local_path(location), "rb", opener=_without_waiting) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            return FileContent(None, "file not readable: no regular file (a pipe or a device)")
        too_large = _why_too_large(status.st_size, limits)
        # Not to the end: it may be growing.
        if too_large:
            return FileContent(None, too_large)
        return FileContent(stream.read(status.st_size))


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; of a named pipe, without waiting for somebody to write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _why_too_large(size: int, limits: DecodeLimits) -> str | None:
    return (
        f"{size} bytes is over the limit of {limits.max_bytes}" if size > limits.max_bytes else None
    )


def read_ahead(rows: pa.Table, limits: DecodeLimits) -> Iterator[tuple[FileFrames, FileContent]]:
    """The files of catalog rows with their content, in order; some are read before their turn."""

    def read(files: Sequence[FileFrames]) -> list[tuple[FileFrames, FileContent]]:
        return [(file, read_file(file.location, limits)) for file in files]

    ahead: deque[Future[list[tuple[FileFrames, FileContent]]]] = deque()
    files = files_of(rows)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), _AT_A_TIME):
            ahead.append(pool.submit(read, files[start : start + _AT_A_TIME]))
            if len(ahead) == _AHEAD:
                yield from ahead.popleft().result()
        for several in ahead:
            yield from several.result()
