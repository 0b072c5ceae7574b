"""Do heatmaps point at the tumour? Measures of raw maps against masks, with baselines.

Everything is computed on the network's square input (S, S), to which scan and mask are squashed.
For a map L upsampled to S x S (bilinear) and a mask M:

- pointing: 1 where the highest point of L lies in M (pointing game, Zhang et al. 2016,
  arXiv 1608.00507, without its tolerance). A flat map points nowhere: 0.
- mass: sum(L * M) / sum(L) (relevance mass accuracy, Arras et al. 2022, arXiv 2003.07258;
  energy-based pointing game, Wang et al. 2020, arXiv 1910.01279). L is raw, not stretched.
- rank: of the |M| highest pixels of L the share in M (relevance rank accuracy, Arras et al.);
  pixels tied for the last place count with the share that a random choice among them would get.
- iou, dice: of M and the pixels above Otsu's threshold of L; 0 for a flat map.
- box_iou: bounding box of the largest connected part of those pixels against the bounding box of
  that part of M which it fits best.

A map that is zero everywhere scores 0 throughout; it is counted, not left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintumor_ray.errors import UsageError
from braintumor_ray.explain.overlay import heatmap_at
from braintumor_ray.explain.regions import head_regions, region_weights

MEASURES = ("pointing", "mass", "rank", "iou", "dice", "box_iou")
BASELINES = ("centre", "random", "whole_head")
CENTRE_SIGMA = 1 / 6  # of the side: the map has faded at the picture's edge

Mask = NDArray[np.bool_]
Scores = dict[str, float]
Box = tuple[int, int, int, int]


def localize(
    cams: Mapping[str, NDArray[Any]],
    masks: Iterable[Mask | None],
    images: Iterable[NDArray[np.uint8]] | None = None,
    *,
    seed: int,
) -> pa.Table:
    """Score the maps of many scans against their masks, and baselines beside them.

    Baselines: `centre`, a Gaussian in the middle of the picture; `random`, seeded noise of the
    raw map's size; `whole_head`, the head outline as a uniform map, whose `pointing` is the chance
    that a random point of the head lies in the mask (left out where no head is found).

    Args:
        cams: raw maps (n, h, w) >= 0, any float dtype, by method; the first one's size is that
            of the random baseline.
        masks: bool (S, S) per scan; None or without tumour: the scan is left out.
        images: uint8 (S, S) per scan, as the network saw it; None: no `whole_head`.
        seed: of the random baseline; scan i has the same noise whatever the others are.

    Returns:
        One row per scan and method or baseline: `row` int64 (0..n-1), `method`, `MEASURES` as
        float64 in [0, 1], `flat` bool (the map has no pattern), `mask_area` (share of the picture).

    Raises:
        UsageError: no methods, or numbers of scans that differ.
    """
    count = _check_cams(cams)
    shape = next(iter(cams.values())).shape[1:]
    rows: list[dict[str, Any]] = []
    done = 0
    for index, (mask, image) in enumerate(_pairs(masks, images, count)):
        done += 1
        if mask is None or not mask.any():
            continue
        target = _Target(mask)
        maps = {name: values[index] for name, values in cams.items()}
        noise = np.random.default_rng((seed, index)).random(shape, np.float32)
        for name, cam in {**maps, "centre": centre_map(mask.shape), "random": noise}.items():
            rows.append({"row": index, "method": name, **target.score(cam)})
        head = None if image is None else head_regions(image)
        if head is not None:
            rows.append({"row": index, "method": "whole_head", **_head_scores(target, head > 0)})
    if done != count:
        raise UsageError(f"{done} masks for maps of {count} scans; give one per scan, in order")
    return pa.Table.from_pylist(rows, schema=table_schema())


def table_schema() -> pa.Schema:
    """Columns of what `localize` returns."""
    return pa.schema(
        [
            ("row", pa.int64()),
            ("method", pa.string()),
            *((name, pa.float64()) for name in MEASURES),
            ("flat", pa.bool_()),
            ("mask_area", pa.float64()),
        ]
    )


def score_map(cam: NDArray[Any], mask: Mask) -> Scores:
    """All measures of one raw map against one mask.

    Args:
        cam: raw map (h, w) >= 0, any float dtype.
        mask: bool (S, S), not empty.

    Returns:
        `MEASURES` in [0, 1], `flat` (0 or 1) and `mask_area`.

    Raises:
        UsageError: the mask is empty or not bool (S, S), or the map has negative or no numbers.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or not mask.any():
        raise UsageError(
            f"a mask is bool (S, S) with a tumour in it, not {mask.dtype} {mask.shape} "
            f"with {np.count_nonzero(mask)} pixels; leave scans without tumour out"
        )
    return _Target(mask).score(cam)


def centre_map(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A Gaussian in the middle of the picture, sigma a sixth of each side, float32 (H, W)."""
    height, width = shape
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    squared = (y[:, None] ** 2 + x[None, :] ** 2) / (2 * CENTRE_SIGMA**2)
    return np.exp(-squared).astype(np.float32)


class _Target:
    """A mask, and what all maps of its scan are compared with."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.pixels = int(np.count_nonzero(mask))
        self.boxes = _boxes_of_parts(mask)

    def score(self, cam: NDArray[Any]) -> Scores:
        heat = heatmap_at(cam, (self.mask.shape[0], self.mask.shape[1]))
        flat = not heat.any()
        shown = np.zeros_like(self.mask) if flat else above_otsu(heat)
        scores = {
            "pointing": 0.0 if flat else float(self.mask.flat[int(heat.argmax())]),
            "mass": self.mass(cam),
            "rank": 0.0 if not np.any(cam) else self.rank(heat),
            **self.overlap(shown),
        }
        return scores | {"flat": flat, "mask_area": self.pixels / self.mask.size}

    def mass(self, cam: NDArray[Any]) -> float:
        """Share of the raw map's heat in the mask; the upsampling's adjoint weighs the mask."""
        if cam.min() < 0:
            raise UsageError(f"a raw map holds {cam.min():g}; maps are >= 0, after the ReLU")
        background, tumour, _ = region_weights(self.mask.view(np.uint8), _size(cam))
        raw = cam.astype(np.float64)
        inside, outside = float((raw * tumour).sum()), float((raw * background).sum())
        return inside / (inside + outside) if inside + outside > 0 else 0.0

    def rank(self, heat: NDArray[np.float32]) -> float:
        last = np.partition(heat, heat.size - self.pixels, axis=None)[heat.size - self.pixels]
        above, tied = heat > last, heat == last
        places = self.pixels - np.count_nonzero(above)
        share = np.count_nonzero(tied & self.mask) / np.count_nonzero(tied)
        return float(np.count_nonzero(above & self.mask) + places * share) / self.pixels

    def overlap(self, shown: Mask) -> Scores:
        common = np.count_nonzero(shown & self.mask)
        both = np.count_nonzero(shown) + self.pixels
        box = _box_of_largest_part(shown)
        box_iou = max(_box_overlap(box, truth) for truth in self.boxes) if box else 0.0
        return {"iou": common / (both - common), "dice": 2 * common / both, "box_iou": box_iou}


def above_otsu(heat: NDArray[np.float32]) -> Mask:
    """Pixels above Otsu's threshold of a heatmap in [0, 1], at 256 levels."""
    levels = np.rint(heat * 255).astype(np.uint8)
    return np.asarray(cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1] > 0)


def _head_scores(target: _Target, head: Mask) -> Scores:
    scores = target.score(head.astype(np.float32))
    # Every point of the head is its highest: what counts is the chance to hit.
    return scores | {"pointing": scores["mass"]}


def _boxes_of_parts(mask: Mask) -> list[Box]:
    """Boxes (left, top, right, bottom), right and bottom exclusive, of 8-connected parts."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return [(x, y, x + width, y + height) for x, y, width, height, _ in stats[1:].tolist()]


def _box_of_largest_part(mask: Mask) -> Box | None:
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if len(stats) < 2:
        return None
    x, y, width, height, _ = max(stats[1:].tolist(), key=lambda part: part[4])
    return x, y, x + width, y + height


def _box_overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width = max(0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0, min(first[3], second[3]) - max(first[1], second[1]))
    common = width * height
    return common / (_area(first) + _area(second) - common)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _size(cam: NDArray[Any]) -> tuple[int, int]:
    return cam.shape[0], cam.shape[1]


def _check_cams(cams: Mapping[str, NDArray[Any]]) -> int:
    if not cams:
        raise UsageError("no maps to score; pass at least one method, e.g. {'gradcam': cams}")
    taken = set(cams) & set(BASELINES)
    if taken:
        raise UsageError(f"'{taken.pop()}' is the name of a baseline; name the method otherwise")
    counts = {name: len(values) for name, values in cams.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(f"methods have maps of different numbers of scans: {counts}")
    return next(iter(counts.values()))


def _pairs(
    masks: Iterable[Mask | None], images: Iterable[NDArray[np.uint8]] | None, count: int
) -> Iterator[tuple[Mask | None, NDArray[np.uint8] | None]]:
    if images is None:
        for mask, _ in zip(masks, range(count), strict=True):
            yield mask, None
    else:
        for mask, image, _ in zip(masks, images, range(count), strict=True):
            yield mask, image
