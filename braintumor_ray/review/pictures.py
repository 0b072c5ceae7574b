"""Pictures that the page shows: scans as they are decoded, maps in color."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from braintumor_ray.decode.hashes import pixel_sha256
from braintumor_ray.decode.preprocess import shrunk
from braintumor_ray.decode.reading import run_on_scans
from braintumor_ray.decode.sandbox import DecodeSandbox
from braintumor_ray.decode.types import Decoded, DecodeOptions
from braintumor_ray.errors import BrainTumorError
from braintumor_ray.explain.overlay import colorize, drawn_heatmap
from braintumor_ray.predict.results import CHANGED_FILE
from braintumor_ray.types import GrayImage

WORKER = "braintumor_ray.decode.decode:decode_frames"
LARGEST = 1024  # pixels of the longer side that are sent
_KEPT = 256  # pictures and maps in memory, for going back and forth
_SCANS = 24  # decoded at full size


class NoPicture(BrainTumorError):
    """The file of a scan cannot be read again, or is not what was scored."""


class Cache:
    """The newest results of a function by their keys; for several threads."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._found: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - of any function
        """What was made for a key, made where it is not there."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        made = make()
        with self._lock:
            self._found[key] = made
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        return made


@dataclass(frozen=True)
class Encoded:
    """A picture as it is sent."""

    content: bytes
    media_type: str


class Pictures:
    """Reads scans again, in a child process that a hostile file may kill."""

    def __init__(self) -> None:
        self._sandbox: DecodeSandbox | None = None  # started for the first scan
        self._turn = threading.Lock()
        self._scans, self._encoded = Cache(_SCANS), Cache(_KEPT)

    def close(self) -> None:
        """End the child process."""
        if self._sandbox is not None:
            self._sandbox.close()

    def gray(self, rows: pa.Table) -> GrayImage:
        """The scan of one row, uint8 (H, W).

        Args:
            rows: one row, as for `decode.files.files_of`, perhaps with `pixel_sha256` as scored.

        Raises:
            NoPicture: it cannot be read, or has changed since.
        """
        key = (rows["uri"][0].as_py(), rows["frame"][0].as_py())
        found: GrayImage = self._scans.get(key, lambda: self._read(rows))
        return found

    def scan(self, rows: pa.Table, longest: int) -> Encoded:
        """The scan as PNG, shrunk to `longest` pixels where it is larger.

        Raises:
            NoPicture: as for `gray`.
        """
        key = ("scan", rows["uri"][0].as_py(), rows["frame"][0].as_py(), longest)

        def make() -> Encoded:
            picture = Image.fromarray(shrunk(self.gray(rows), longest))
            return Encoded(_saved(picture, "PNG", compress_level=1), "image/png")

        found: Encoded = self._encoded.get(key, make)
        return found

    def heat(self, key: object, cam: Callable[[], NDArray[Any]], shape: tuple[int, int]) -> Encoded:
        """A map in color, at the size at which its scan is shown.

        Args:
            key: names the map.
            cam: gives it, (h, w).
            shape: (H, W) of the scan.
        """

        def make() -> Encoded:
            heat = colorize(drawn_heatmap(cam(), shown_size(shape)))
            return Encoded(_saved(Image.fromarray(heat), "JPEG", quality=90), "image/jpeg")

        found: Encoded = self._encoded.get(("map", key), make)
        return found

    def _read(self, rows: pa.Table) -> GrayImage:
        with self._turn:
            if self._sandbox is None:
                self._sandbox = DecodeSandbox(WORKER)
            (decoded,) = run_on_scans(rows, self._sandbox, DecodeOptions(), _failed)
        if decoded.gray is None:
            raise NoPicture(f"the scan cannot be read: {decoded.reason}")
        if "pixel_sha256" in rows.column_names:
            scored = rows["pixel_sha256"][0].as_py()
            if scored is not None and pixel_sha256(decoded.gray) != scored:
                raise NoPicture(CHANGED_FILE)
        gray: GrayImage = decoded.gray
        return gray


def shown_size(shape: tuple[int, int], longest: int = LARGEST) -> tuple[int, int]:
    """(H, W) of a picture that is shown with at most `longest` pixels a side."""
    scale = min(1.0, longest / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def stored_map(column: pa.ChunkedArray, row: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A stored map of a row, float32 (h, w)."""
    return np.array(column[row].as_py(), np.float32).reshape(shape)


def _failed(reason: str) -> Decoded:
    return Decoded(reason=reason, status="quarantined")


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
