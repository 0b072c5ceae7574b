"""What an audit keeps of each file: hashes, the state of its pixels, and marks of its origin.

`FingerprintStage` works on Arrow tables and has one decoding process, so that it can be an actor
of a Ray Data job as well as a thread's worker here.
"""

import hashlib
import io
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pydicom
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from pydicom.errors import InvalidDicomError

from braintumor_ray.decode.burned_in import is_tagged, text_lines
from braintumor_ray.decode.decode import decode_frames
from braintumor_ray.decode.hashes import fingerprint
from braintumor_ray.decode.reading import run_on_scans
from braintumor_ray.decode.sandbox import DecodeSandbox
from braintumor_ray.decode.sniff import sniff
from braintumor_ray.decode.types import Decoded, DecodeOptions
from braintumor_ray.errors import CatalogError
from braintumor_ray.types import MANUFACTURER, Progress

WORKER = "braintumor_ray.audit.fingerprints:fingerprint_file"
TEXT_WORKER = "braintumor_ray.audit.fingerprints:fingerprint_file_and_text"
BLOCK_ROWS = 256
_BLACK = 8  # gray levels; JPEG noise in an empty background stays below

FINGERPRINT_SCHEMA = pa.schema(
    [
        pa.field("status", pa.string()),
        pa.field("reason", pa.string()),
        # Format and mode by content, see `decode.types.Decoded`; size of the upright image.
        pa.field("decoded_format", pa.string()),
        pa.field("decoded_mode", pa.string()),
        pa.field("decoded_height", pa.int32()),
        pa.field("decoded_width", pa.int32()),
        pa.field("n_bytes", pa.int64()),
        # Hex digests of the file and of the decoded image.
        pa.field("byte_sha256", pa.string()),
        pa.field("pixel_sha256", pa.string()),
        # 256 bits each, the uint64 (4,) of `decode.hashes`; they do not distinguish flat images.
        pa.field("dhash", pa.binary(32)),
        pa.field("dct_hash", pa.binary(32)),
        pa.field("flat", pa.bool_()),
        # Outermost pixels: mean gray level (0 to 255) and black share; black lines at the edges.
        pa.field("border_mean", pa.float32()),
        pa.field("border_black", pa.float32()),
        pa.field("margin_vertical", pa.float32()),
        pa.field("margin_horizontal", pa.float32()),
        # Mean step of the quantization tables; 0 without a table.
        pa.field("jpeg_luma", pa.float32()),
        pa.field("jpeg_chroma", pa.float32()),
        pa.field("jpeg_progressive", pa.bool_()),
        # Burned-in text: by `tag` (0028,0301), or found in the `picture`; null without, or where
        # it was not looked for.
        pa.field("burned_in", pa.string()),
    ]
)
# A row of the schema; keys that are missing become null.
Fingerprint: TypeAlias = dict[str, Any]


class FingerprintStage:
    """Catalog rows in; the same rows with the columns of `FINGERPRINT_SCHEMA` out.

    Not thread-safe: one stage per thread or actor.

    Args:
        timeout_s: longest time for one file, seconds.
        text: look for burned-in text: several times the work.
    """

    def __init__(self, timeout_s: float = 30.0, text: bool = True) -> None:
        self._options = DecodeOptions()
        self._sandbox = DecodeSandbox(TEXT_WORKER if text else WORKER, timeout_s)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Fingerprint a block of rows; needs `uri` and `frame`, keeps order and number."""
        scans = run_on_scans(rows, self._sandbox, self._options, _quarantined)
        found = pa.Table.from_pylist(list(scans), schema=FINGERPRINT_SCHEMA)
        table = rows.select([name for name in rows.column_names if name not in found.column_names])
        for field in FINGERPRINT_SCHEMA:
            table = table.append_column(field, found[field.name])
        return table

    def close(self) -> None:
        """End the decoding process."""
        self._sandbox.close()


def fingerprint_file(data: bytes | None, options: DecodeOptions) -> list[Fingerprint]:
    """Fingerprint the wanted frames of one file; runs in the decoding process.

    Args:
        data: the whole file.
        options: which frames, and how.

    Returns:
        One row of `FINGERPRINT_SCHEMA` per frame, in order; never raises for a bad file.
    """
    return _fingerprints(data, decode_frames(data, options))


def fingerprint_file_and_text(data: bytes | None, options: DecodeOptions) -> list[Fingerprint]:
    """As `fingerprint_file`, and look for burned-in text."""
    header, scans = _annotation(data or b""), decode_frames(data, options)
    return [
        {**found, "burned_in": _burned_in(scan, header)}
        for found, scan in zip(_fingerprints(data, scans), scans, strict=True)
    ]


def _fingerprints(data: bytes | None, scans: Sequence[Decoded]) -> list[Fingerprint]:
    content = data or b""
    file = {"n_bytes": len(content), "byte_sha256": hashlib.sha256(content).hexdigest()}
    marks = _jpeg_marks(content)
    return [_fingerprint_scan(scan, file, marks) for scan in scans]


def fingerprint_catalog(
    catalog: pa.Table,
    *,
    workers: int = 2,
    text: bool = True,
    progress: Progress | None = None,
) -> pa.Table:
    """Fingerprint every scan of a catalog, block by block, in `workers` decoding processes.

    Returns:
        The catalog with the columns of `FINGERPRINT_SCHEMA`, rows in the catalog's order.

    Raises:
        CatalogError: the catalog has no rows.
    """
    if not catalog.num_rows:
        raise CatalogError("the catalog has no rows; there is nothing to audit")
    starts = range(0, catalog.num_rows, BLOCK_ROWS)
    count = max(1, min(workers, len(starts)))
    free: queue.SimpleQueue[FingerprintStage] = queue.SimpleQueue()

    def run(start: int) -> pa.Table:
        stage = free.get()
        try:
            return stage(catalog.slice(start, BLOCK_ROWS))
        finally:
            free.put(stage)

    blocks = []
    # The pool ends first: no stage is closed while a thread uses it.
    with ExitStack() as stages, ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            free.put(stages.enter_context(closing(FingerprintStage(text=text))))
        for block in pool.map(run, starts):
            blocks.append(block)
            if progress:
                progress(min(len(blocks) * BLOCK_ROWS, catalog.num_rows), catalog.num_rows)
    return pa.concat_tables(blocks)


def hash_words(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """A column of 32-byte hashes as uint64 (n, 4); zeros where it is null."""
    blob = b"".join(value or bytes(32) for value in column.to_pylist())
    return np.frombuffer(blob, np.uint64).reshape(-1, 4)


def _quarantined(reason: str) -> Fingerprint:
    return {"status": "quarantined", "reason": reason}


def _fingerprint_scan(decoded: Decoded, file: Fingerprint, marks: Fingerprint) -> Fingerprint:
    known = file | {
        "status": decoded.status,
        "reason": decoded.reason,
        "decoded_format": decoded.format,
        "decoded_mode": decoded.mode,
    }
    if decoded.gray is None:
        return known
    found = fingerprint(decoded.gray)
    height, width = decoded.gray.shape
    return {
        **known,
        **marks,
        **_border(decoded.gray),
        "decoded_height": height,
        "decoded_width": width,
        "pixel_sha256": found.pixel_sha256,
        "dhash": found.dhash.tobytes(),
        "dct_hash": found.dct_hash.tobytes(),
        "flat": found.flat,
    }


def _annotation(content: bytes) -> str:
    """What a DICOM header has on burned-in text: `yes`, `ours` (a capture of ours) or nothing."""
    if sniff(content) != "dicom":
        return ""
    try:
        header = pydicom.dcmread(
            io.BytesIO(content), force=True, stop_before_pixels=True,
            specific_tags=["BurnedInAnnotation", "Manufacturer", "SOPClassUID"],
        )  # fmt: skip
    except (AttributeError, InvalidDicomError, OSError, TypeError, ValueError):
        return ""  # the decoder reports what is wrong with it
    if header.get("Manufacturer") == MANUFACTURER:
        return "ours"
    return "yes" if is_tagged(header) else ""


def _burned_in(decoded: Decoded, header: str) -> str | None:
    if header == "yes":
        return "tag"
    if header == "ours" or decoded.gray is None or not text_lines(decoded.gray):
        return None
    return "picture"


def _border(gray: NDArray[np.uint8]) -> dict[str, Any]:
    edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    return {
        "border_mean": float(edge.mean()),
        "border_black": float((edge <= _BLACK).mean()),
        "margin_vertical": _margin(gray.max(axis=1)),
        "margin_horizontal": _margin(gray.max(axis=0)),
    }


def _margin(brightest: NDArray[np.uint8]) -> float:
    """Share of lines before the first and after the last one that is not black."""
    lit = np.flatnonzero(brightest > _BLACK)
    return 1.0 if not lit.size else 1 - float(lit[-1] - lit[0] + 1) / len(brightest)


def _jpeg_marks(content: bytes) -> dict[str, Any]:
    none = {"jpeg_luma": 0.0, "jpeg_chroma": 0.0, "jpeg_progressive": False}
    if not content.startswith(b"\xff\xd8"):
        return none
    try:
        image = JpegImageFile(io.BytesIO(content))
    except (SyntaxError, OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return none  # the decoder reports what is wrong with it
    tables = [float(np.mean(table)) for _, table in sorted(image.quantization.items())]
    return {
        "jpeg_luma": tables[0] if tables else 0.0,
        "jpeg_chroma": tables[1] if len(tables) > 1 else 0.0,
        "jpeg_progressive": bool(image.info.get("progressive")),
    }
