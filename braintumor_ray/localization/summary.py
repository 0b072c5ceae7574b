"""Heatmaps of a whole catalog against tumor truth: scores per scan, and means with intervals."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintumor_ray.errors import UsageError
from braintumor_ray.localization.outlines import TruthError
from braintumor_ray.localization.scores import BASELINES, MEASURES, localize
from braintumor_ray.localization.truth import TruthIndex
from braintumor_ray.metrics.intervals import bootstrap_means
from braintumor_ray.types import Mask

ALL = "all"


def score_heatmaps(
    scans: pa.Table,
    cams: Mapping[str, NDArray[Any]],
    truth: TruthIndex,
    *,
    image_size: int,
    images: Iterable[NDArray[np.uint8]] | None = None,
    seed: int,
) -> pa.Table:
    """Score raw maps of a catalog's scans where the truth knows their tumor.

    Args:
        scans: n rows with `path`, `frame` and the decoded scan's `height` and `width`.
        cams: raw maps (n, h, w) by method, rows as in `scans`.
        truth: from `localization.truth.load_truth`.
        image_size: side S of the network's input.
        images: uint8 (S, S) per scan; None: no whole-head baseline.
        seed: of the random baseline.

    Returns:
        As `localization.scores.localize`; `row` counts the rows of `scans`.

    Raises:
        TruthError: no scan has truth, two scans share one, or a mask cannot be read.
    """
    truth = require_match(truth, scans["path"].to_pylist())
    masks = _masks(scans, truth, (image_size, image_size))
    return localize(cams, masks, images, seed=seed)


def require_match(truth: TruthIndex, paths: Sequence[str]) -> TruthIndex:
    """The truth of a catalog's scans (`TruthIndex.of`).

    Raises:
        TruthError: no scan has truth, or two scans share one.
    """
    found = truth.of(paths)
    if not found.scans:
        raise TruthError(
            f"none of {len(truth)} entries of '{truth.location}' belongs to one of "
            f"{len(paths)} scans (e.g. '{next(iter(truth.entries), None)}' and '{paths[0]}'); "
            "paths are compared below the catalog's root"
        )
    return found


def summarize_localization(
    table: pa.Table,
    groups: NDArray[Any],
    classes: Sequence[str | None] | None = None,
    *,
    seed: int,
    n_boot: int = 1000,
    level: float = 0.95,
) -> dict[str, Any]:
    """Mean of every measure per class and method, with cluster-bootstrap intervals.

    Args:
        table: from `localize`, rows 0..n-1.
        groups: patient or duplicate-group id per scan, (n,).
        classes: label per scan, n of them; None: no table by class.
        seed: of the resampling.
        n_boot: number of resamples.
        level: coverage in (0, 1).

    Returns:
        Ready for JSON: `measures`, `baselines`, `scans` (scored ones), `level`, `n_boot`, `seed`
        and `classes`: {'all' or class: {method: {n, flat, mean_mask_area, measure: interval}}},
        an interval being `estimate`, `low`, `high`, `n_groups`.

    Raises:
        UsageError: nothing was scored.
    """
    if not table.num_rows:
        raise UsageError(
            "no heatmap was scored: no scan has both a prediction and a mask with a tumor"
        )
    rows = table["row"].to_numpy()
    methods = np.array(table["method"].to_pylist(), dtype=object)
    wanted = {ALL: np.ones(len(rows), bool)}
    if classes is not None:
        labels = np.array(classes, dtype=object)[rows]
        names = sorted({label for label in labels.tolist() if label is not None})
        wanted |= {name: labels == name for name in names}
    resampling: dict[str, Any] = {"seed": seed, "n_boot": n_boot, "level": level}
    by_class = {
        name: {
            method: _summary(
                table.filter(pa.array(chosen & (methods == method))), groups, **resampling
            )
            for method in dict.fromkeys(methods[chosen].tolist())
        }
        for name, chosen in wanted.items()
    }
    return {
        "measures": list(MEASURES),
        "baselines": list(BASELINES),
        "scans": len(np.unique(rows)),
        **resampling,
        "classes": by_class,
    }


def _masks(scans: pa.Table, truth: TruthIndex, shape: tuple[int, int]) -> Iterator[Mask | None]:
    columns = [scans[name].to_pylist() for name in ("path", "frame", "height", "width")]
    for path, frame, height, width in zip(*columns, strict=True):
        full = None if height is None or width is None else (int(height), int(width))
        yield truth.mask(path, shape, full, frame)


def _summary(
    rows: pa.Table, groups: NDArray[Any], *, seed: int, n_boot: int, level: float
) -> dict[str, Any]:
    values = np.stack([rows[name].to_numpy() for name in MEASURES], axis=1)
    intervals = bootstrap_means(
        values, np.asarray(groups)[rows["row"].to_numpy()], seed=seed, n_boot=n_boot, level=level
    )
    summary: dict[str, Any] = {
        "n": rows.num_rows,
        "flat": int(np.count_nonzero(rows["flat"].to_numpy(zero_copy_only=False))),
        "mean_mask_area": float(rows["mask_area"].to_numpy().mean()),
    }
    kept = ("estimate", "low", "high", "n_groups")
    for name, interval in zip(MEASURES, intervals, strict=True):
        summary[name] = {key: getattr(interval, key) for key in kept}
    return summary
