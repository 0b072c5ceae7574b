"""What the network will be shown: a contact sheet of augmented scans."""

from pathlib import Path

import pyarrow as pa

from braintumor_ray.data.augment import Augmenter
from braintumor_ray.data.decode import DecodeLimits
from braintumor_ray.data.prepare import WORKER
from braintumor_ray.data.preprocess import Preprocessing
from braintumor_ray.data.reading import group_frames, prepare_scans
from braintumor_ray.data.sandbox import DecodeSandbox
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.overlay import contact_sheet, write_png
from braintumor_ray.recipes.schema import Recipe

SCANS, EPOCHS = 6, 7
_CANDIDATES = 4 * SCANS  # some may be unreadable


def preview_augmentation(catalog: pa.Table, recipe: Recipe, path: Path) -> None:
    """Write a sheet with a row per scan: as it is, then as in the first epochs.

    Raises:
        UsageError: none of the first scans can be read.
    """
    step = max(1, catalog.num_rows // _CANDIDATES)
    rows = catalog.take(pa.array(range(0, catalog.num_rows, step)))
    size = recipe.data.image_size
    plain = Preprocessing(size, recipe.data.interpolation, (0.0,) * 3, (1.0,) * 3)
    files = group_frames(rows["uri"].to_pylist(), rows["frame"].to_pylist())
    with DecodeSandbox(WORKER) as sandbox:
        scans = list(prepare_scans(files, sandbox, plain, DecodeLimits()))
    readable = [
        (scan.image, row)
        for scan, row in zip(scans, rows.to_pylist(), strict=True)
        if scan.image is not None
    ][:SCANS]
    if not readable:
        raise UsageError(f"none of {len(scans)} scans can be read: {scans[0].reason}")
    tiles, captions = [], []
    for image, row in readable:
        tiles.append(image)
        captions.append(str(row["label"]))
        for epoch in range(EPOCHS):
            tiles.append(Augmenter(recipe.augment, recipe.seed, epoch)(image, row["scan_id"]))
            captions.append(f"epoch {epoch + 1}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, contact_sheet(tiles, EPOCHS + 1, captions, tile_size=160))
