"""The worklist as one self-contained page, overlays drawn from stored maps."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from braintumor_ray.decode.prepare import PreparedScan
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.explain.overlay import METHOD_LABELS, colorize, drawn_heatmap, superimpose
from braintumor_ray.pages.pages import write_page
from braintumor_ray.pages.pictures import jpeg_uri
from braintumor_ray.predict.results import CHANGED_FILE, ResultsFolder

TEMPLATE = "worklist.html.j2"
ROWS_ON_PAGE = 1000
TILE = 224  # pixels of the longer side
_GAP = 4
_MOST_NARROW = 8  # a scan of a few pixels in width is still drawn


def write_worklist_page(
    path: Path, folder: ResultsFolder, summary: dict[str, Any], scans: pa.Table, patients: pa.Table
) -> int:
    """Write the page.

    Args:
        path: the .html to write.
        folder: of the results.
        summary: as `make_worklist` returns it.
        scans: from `rank_scans`, those to list.
        patients: from `rank_patients`, those to list.

    Returns:
        How many of the overlays show the scan itself, not its heatmaps alone.
    """
    first = scans.slice(0, summary["overlays"])
    pictures = draw_pictures(folder, first)
    maps = folder.meta["cam_methods"]
    listed, pictured = (t.drop_columns(["probabilities", *maps]) for t in (scans, first))
    shown = listed.slice(0, ROWS_ON_PAGE).to_pylist()
    drawn = [row | picture for row, picture in zip(pictured.to_pylist(), pictures, strict=True)]
    context = {
        "title": f"Worklist by {summary['by']}",
        "summary": summary,
        "meta": folder.meta,
        "methods": [METHOD_LABELS.get(method, method) for method in maps],
        "drawn": drawn,
        "scans": shown,
        "patients": patients.slice(0, ROWS_ON_PAGE).to_pylist(),
        "has_patients": patients["patient_key"].null_count < patients.num_rows,
    }
    write_page(path, TEMPLATE, context)
    return sum(picture["missing"] is None for picture in pictures)


def draw_pictures(folder: ResultsFolder, scans: pa.Table) -> list[dict[str, Any]]:
    """Scan and overlays of some rows, side by side, as data URIs.

    Returns:
        Per row `picture` and `missing`: why the scan itself is not shown, or None.
    """
    methods, shape = folder.meta["cam_methods"], folder.meta["cam_shape"]
    maps = {name: _maps(scans[name], shape) for name in methods}
    # Scans come as squares; the aspect is restored when they are drawn.
    squares = Preprocessing(TILE, "area", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    facts = scans.select(["height", "width", "pixel_sha256"]).to_pylist()
    read = decode_scans(scans, squares)
    drawn = []
    for index, (scan, scored) in enumerate(zip(read, facts, strict=True)):
        missing = _why_missing(scan, scored["pixel_sha256"])
        size = _fitted(scored["height"], scored["width"])
        gray = _resized(scan.image, size) if scan.image is not None and not missing else None
        cams = [maps[name][index] for name in methods]
        drawn.append({"picture": jpeg_uri(_strip(gray, cams, size)), "missing": missing})
    return drawn


def _why_missing(scan: PreparedScan, scored: str) -> str | None:
    if scan.image is None:
        return scan.reason
    return None if scan.pixel_sha256 == scored else CHANGED_FILE


def _maps(column: pa.ChunkedArray, shape: list[int]) -> NDArray[np.float16]:
    flat = pc.list_flatten(column).to_numpy()
    return np.asarray(flat.reshape(len(column), *shape))


def _strip(
    gray: NDArray[np.uint8] | None, cams: list[NDArray[np.float16]], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Scan and overlays, or heatmaps alone, in a row: uint8 (h, w, 3)."""
    heats = [drawn_heatmap(cam, size) for cam in cams]
    if gray is None:
        tiles = [colorize(heat) for heat in heats]
    else:
        scan = np.repeat(gray[:, :, np.newaxis], 3, axis=2)
        tiles = [scan, *(superimpose(gray, heat) for heat in heats)]
    padded = [np.pad(tile, ((0, 0), (0, _GAP), (0, 0))) for tile in tiles]
    return np.concatenate(padded, axis=1)[:, :-_GAP]


def _fitted(height: int, width: int) -> tuple[int, int]:
    scale = TILE / max(height, width)
    return max(_MOST_NARROW, round(height * scale)), max(_MOST_NARROW, round(width * scale))


def _resized(square: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if square.shape == size:
        return square
    resized = cv2.resize(square, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, dtype=np.uint8)
