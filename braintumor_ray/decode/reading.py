"""Decoding the scans of catalog rows: each file opened once, in a process of its own."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from braintumor_ray.decode.files import FileFrames, read_ahead
from braintumor_ray.decode.prepare import WORKER, PreparedScan, PrepareOptions
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.sandbox import DecodeSandbox, Item
from braintumor_ray.decode.types import DEFAULT_LIMITS, DecodeLimits, DecodeOptions
from braintumor_ray.types import Progress

PREPARED_SCHEMA = pa.schema(
    [
        pa.field("status", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("pixel_sha256", pa.string()),
        pa.field("hashes", pa.binary()),
        pa.field("image", pa.large_binary()),
        pa.field("box", pa.list_(pa.float64(), 4)),
    ]
)
# For those who want hashes only; the smallest square costs least.
_THUMBNAIL = Preprocessing(32, "area", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
Result = TypeVar("Result")


def run_on_scans(
    rows: pa.Table,
    sandbox: DecodeSandbox,
    options: DecodeOptions,
    failed: Callable[[str], Result],
) -> Iterator[Result]:
    """Run the sandbox's worker on the files of catalog rows; one result per row, in order.

    Files are read ahead of their turn. One that cannot be read, or that kills its decoder, costs
    only its own rows.

    Args:
        rows: as for `files.files_of`.
        sandbox: its worker gives a list of results for each file, one per frame.
        options: for the worker; each file has its own `frames` and `volumes`.
        failed: makes the result of a scan from the reason why its file gave none.
    """
    waiting: deque[tuple[FileFrames, str | None]] = deque()  # read, result not yet given

    def unreadable() -> Iterator[Result]:
        while waiting and (reason := waiting[0][1]) is not None:
            yield from [failed(reason)] * len(waiting.popleft()[0].frames)

    def items() -> Iterator[Item]:
        wanted = options
        for file, content in read_ahead(rows, options.limits):
            waiting.append((file, content.reason))
            if content.reason is None:
                if (wanted.frames, wanted.volumes) != (file.frames, file.volumes):
                    wanted = replace(options, frames=file.frames, volumes=file.volumes)
                yield content.data, wanted  # the same object where it can be: it is sent once

    for outcome in sandbox.map(items()):
        yield from unreadable()
        file, _ = waiting.popleft()
        if outcome.reason is None:
            yield from outcome.value
        else:
            yield from [failed(outcome.reason)] * len(file.frames)
    yield from unreadable()


def decode_scans(
    rows: pa.Table,
    preprocessing: Preprocessing,
    *,
    limits: DecodeLimits | None = None,
    hashed: bool = False,
    sandbox: DecodeSandbox | None = None,
) -> Iterator[PreparedScan]:
    """Decode and resize the scans of catalog rows; one result per row, in order.

    Args:
        rows: as for `files.files_of`.
        preprocessing: decides the square.
        limits: what a file may cost.
        hashed: also the perceptual hashes that find near-duplicates.
        sandbox: of a worker like `prepare.prepare_file`; None: one for these rows.
    """
    if not rows.num_rows:
        return
    options = PrepareOptions(
        preprocessing=preprocessing, limits=limits or DEFAULT_LIMITS, hashed=hashed
    )
    with ExitStack() as stack:
        child = sandbox or stack.enter_context(DecodeSandbox(WORKER))
        yield from run_on_scans(rows, child, options, _quarantined)


def scan_columns(scans: Sequence[PreparedScan], names: Iterable[str]) -> dict[str, pa.Array]:
    """Some columns of `PREPARED_SCHEMA`; a square is its bytes, row by row."""
    return {name: _column(scans, name) for name in names}


def binary_column(arrays: Sequence[npt.NDArray[Any] | None]) -> pa.Array:
    """Arrow's large_binary column of the bytes of arrays, each row by row; null where None.

    All are copied once into one buffer; a column that Arrow lets grow is moved again and again.
    """
    sizes = [0 if array is None else array.nbytes for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    content = np.empty(int(offsets[-1]), np.uint8)
    for array, start, end in zip(arrays, offsets[:-1], offsets[1:], strict=True):
        if array is not None:
            content[start:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    valid = pa.array([array is not None for array in arrays], pa.bool_()).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.large_binary(), len(arrays), buffers)


def hash_scans(catalog: pa.Table, progress: Progress | None = None) -> pa.Table:
    """Decode every scan; columns scan_id, status, reason, pixel_sha256 and hashes.

    The hashes are those of `hashes.pack_hashes`, null where the status is not ok.
    """
    scans = []
    for scan in decode_scans(catalog, _THUMBNAIL, hashed=True):
        scans.append(replace(scan, image=None))
        if progress:
            progress(len(scans), catalog.num_rows)
    columns = scan_columns(scans, ("status", "reason", "pixel_sha256", "hashes"))
    return pa.table({"scan_id": catalog["scan_id"], **columns})


def _quarantined(reason: str) -> PreparedScan:
    return PreparedScan("quarantined", reason)


def _column(scans: Sequence[PreparedScan], name: str) -> pa.Array:
    values = [getattr(scan, name) for scan in scans]
    if name == "image":
        return binary_column(values)
    return pa.array(values, PREPARED_SCHEMA.field(name).type)
