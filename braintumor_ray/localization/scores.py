"""Do heatmaps point at the tumor? Measures of raw maps against masks, with baselines.

Everything is computed on the network's square input (S, S), to which scan and mask are squashed.
For a map L upsampled to S x S (bilinear) and a mask M:

- pointing: 1 where the highest point of L is in M (pointing game, Zhang et al. 2016,
  arXiv 1608.00507, without its tolerance). A flat map points nowhere: 0.
- mass: sum(L * M) / sum(L) (relevance mass accuracy, Arras et al. 2022, arXiv 2003.07258;
  energy-based pointing game, Wang et al. 2020, arXiv 1910.01279). L is raw, not stretched.
- rank: of the |M| highest pixels of L the share in M (relevance rank accuracy, Arras et al.);
  pixels tied for the last place count with the share that a random choice among them would get;
  pixels at the map's own minimum count for nothing.
- iou, dice: of M and the pixels above Otsu's threshold of L; 0 for a flat map.
- box_iou: bounding box of the largest connected part (by enclosed area) of those pixels against
  the bounding box of that part of M which it fits best.

A map that is zero everywhere scores 0 throughout; it is counted, not left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import repeat
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintumor_ray.errors import UsageError
from braintumor_ray.explain.overlay import heatmap_at
from braintumor_ray.explain.regions import head_regions, region_weights
from braintumor_ray.types import Mask

MEASURES = ("pointing", "mass", "rank", "iou", "dice", "box_iou")
BASELINES = ("centre", "random", "whole_head")
CENTER_SIGMA = 1 / 6  # of the side: the map has faded at the picture's edge

Scores = dict[str, float]
PixelBox = tuple[int, int, int, int]


def localize(
    cams: Mapping[str, NDArray[Any]],
    masks: Iterable[Mask | None],
    images: Iterable[NDArray[np.uint8]] | None = None,
    *,
    seed: int,
) -> pa.Table:
    """Score the maps of many scans against their masks, and baselines on the same masks.

    Baselines: `center`, a Gaussian in the middle of the picture; `random`, seeded noise of the
    raw map's size; `whole_head`, the head outline as a uniform map, whose `pointing` is the chance
    that a random point of the head is in the mask (left out where no head is found).

    Args:
        cams: raw maps (n, h, w) >= 0, any float dtype, by method; the first one's size is that
            of the random baseline.
        masks: bool (S, S) per scan; None or without tumor: the scan is left out.
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
    for index, (mask, image) in enumerate(_pairs(masks, images, count)):
        if mask is None or not mask.any():
            continue
        target = _Target(mask)
        maps = {name: values[index] for name, values in cams.items()}
        noise = np.random.default_rng((seed, index)).random(shape, np.float32)
        for name, cam in {**maps, "centre": center_map(mask.shape), "random": noise}.items():
            rows.append({"row": index, "method": name, **target.score(cam)})
        head = None if image is None else head_regions(image)
        if head is not None:
            scores = target.score((head > 0).astype(np.float32))
            # Every point of the head is its highest: what counts is the chance to hit.
            scores["pointing"] = scores["mass"]
            rows.append({"row": index, "method": "whole_head", **scores})
    measures = [(name, pa.float64()) for name in (*MEASURES, "mask_area")]
    schema = [("row", pa.int64()), ("method", pa.string()), *measures, ("flat", pa.bool_())]
    return pa.Table.from_pylist(rows, schema=pa.schema(schema))


@lru_cache(maxsize=8)
def center_map(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A Gaussian in the middle of the picture, sigma a sixth of each side, float32 (H, W)."""
    height, width = shape
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    squared = (y[:, None] ** 2 + x[None, :] ** 2) / (2 * CENTER_SIGMA**2)
    heat = np.exp(-squared).astype(np.float32)
    heat.setflags(write=False)  # shared by every caller of the cache
    return heat


class _Target:
    """A mask, and what all maps of its scan are compared with."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.pixels = int(np.count_nonzero(mask))
        self.boxes = [_box_around(part) for part in _parts(mask)]
        self._weights: dict[tuple[int, int], NDArray[np.float32]] = {}

    def score(self, cam: NDArray[Any]) -> Scores:
        heat = heatmap_at(cam, (self.mask.shape[0], self.mask.shape[1]))
        flat = not heat.any()
        levels = np.rint(heat * 255).astype(np.uint8)
        otsu = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
        shown = np.zeros_like(self.mask) if flat else np.asarray(otsu > 0)
        scores = {
            "pointing": 0.0 if flat else float(self.mask.flat[int(heat.argmax())]),
            "mass": self.mass(cam),
            "rank": 0.0 if flat else self.rank(heat, levels),
            **self.overlap(shown),
        }
        return scores | {"flat": flat, "mask_area": self.pixels / self.mask.size}

    def mass(self, cam: NDArray[Any]) -> float:
        """Share of the raw map's heat in the mask; the upsampling's adjoint weighs the mask."""
        if cam.min() < 0:
            raise UsageError(f"a raw map holds {cam.min():g}; maps are >= 0, after the ReLU")
        raw = cam.astype(np.float64)
        if cam.shape == self.mask.shape:
            inside, total = raw[self.mask].sum(), raw.sum()
        else:
            outside, inside, _ = (raw * self._weights_for(cam)).sum(axis=(1, 2))
            total = inside + outside
        return float(inside / total) if total > 0 else 0.0

    def _weights_for(self, cam: NDArray[Any]) -> NDArray[np.float32]:
        size = (cam.shape[0], cam.shape[1])
        if size not in self._weights:
            self._weights[size] = region_weights(self.mask.view(np.uint8), size)
        return self._weights[size]

    def rank(self, heat: NDArray[np.float32], levels: NDArray[np.uint8]) -> float:
        last = _nth_highest(heat, levels, self.pixels)
        hits = float(np.count_nonzero((heat > last) & self.mask))
        if last > 0:  # the map's own minimum is no rank: most of a sparse map is equal there
            tied = heat == last
            places = self.pixels - np.count_nonzero(heat > last)
            hits += places * np.count_nonzero(tied & self.mask) / np.count_nonzero(tied)
        return hits / self.pixels

    def overlap(self, shown: Mask) -> Scores:
        common = np.count_nonzero(shown & self.mask)
        both = np.count_nonzero(shown) + self.pixels
        box = _box_of_largest_part(shown)
        box_iou = max(_box_overlap(box, truth) for truth in self.boxes) if box else 0.0
        return {"iou": common / (both - common), "dice": 2 * common / both, "box_iou": box_iou}


def _nth_highest(heat: NDArray[np.float32], levels: NDArray[np.uint8], n: int) -> float:
    """The n-th highest value; looked for among the pixels of its level, not among all."""
    counts = cv2.calcHist([levels], [0], None, [256], [0, 256]).ravel()[::-1]
    reached = np.cumsum(counts)
    level = int(np.searchsorted(reached, n))
    before = int(reached[level - 1]) if level else 0
    candidates = heat[levels == 255 - level]
    place = candidates.size - (n - before)
    return float(np.partition(candidates, place)[place])


def _parts(mask: Mask) -> list[NDArray[Any]]:
    """Outer contours of the 8-connected parts."""
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return list(outlines)


def _box_around(part: NDArray[Any]) -> PixelBox:
    """Left, top, right, bottom in pixels, right and bottom exclusive."""
    x, y, width, height = cv2.boundingRect(part)
    return x, y, x + width, y + height


def _box_of_largest_part(mask: Mask) -> PixelBox | None:
    parts = _parts(mask)
    return _box_around(max(parts, key=cv2.contourArea)) if parts else None


def _box_overlap(first: PixelBox, second: PixelBox) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width = max(0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0, min(first[3], second[3]) - max(first[1], second[1]))
    common = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return common / (sum(areas) - common)


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
    """Mask and image of each scan, one pair for each of `count` maps."""
    pictures = repeat(None) if images is None else iter(images)
    done = 0
    for mask in masks:
        if done == count:
            raise UsageError(f"more than {count} masks for maps of {count} scans; give one each")
        try:
            image = next(pictures)
        except StopIteration:
            raise UsageError(f"{done} images for maps of {count} scans; give one each") from None
        yield mask, image
        done += 1
    if done < count:
        raise UsageError(f"{done} masks for maps of {count} scans; give one each, None if unknown")
