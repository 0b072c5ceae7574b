"""Do heatmaps show what the network uses? Tests that change the input, or the network.

All of them measure a sample of the scans, because each costs many forward passes per scan:

- deletion and insertion (Petsiuk et al. 2018, "RISE", arXiv 1806.07421);
- average drop and increase in confidence (Chattopadhay et al. 2018, arXiv 1710.11063);
- model parameter randomization (Adebayo et al. 2018, arXiv 1810.03292): `randomization.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from braintumor_ray.errors import UsageError
from braintumor_ray.explain.overlay import heatmap_at
from braintumor_ray.metrics.calibration import softmax
from braintumor_ray.types import Floats, GrayImage

Fill = Literal["mean", "zero", "blur"]
Kind = Literal["deletion", "insertion"]

BLUR_SIGMA = 1 / 20  # of the side: structures smaller than that are gone
RANDOM = "random"


class Logits(Protocol):
    """What a forward pass must give; `predict.predictor.RawOutput` does."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """Float32 (B, k), before temperature."""


Forward = Callable[[GrayImage], Logits]


def sample_rows(count: int, size: int, seed: int) -> NDArray[np.int64]:
    """At most `size` of `count` rows, drawn without replacement, ascending.

    Raises:
        UsageError: `size` is below 1.
    """
    if size < 1:
        raise UsageError(f"a sample of {size} scans is empty; draw 1 or more (50 is usual)")
    chosen = np.random.default_rng(seed).permutation(count)[:size]
    return np.sort(chosen).astype(np.int64)


@dataclass(frozen=True)
class FaithfulnessOptions:
    """How faithfulness is measured.

    Attributes:
        seed: of the random map.
        temperature: the bundle's; divides the logits before softmax.
        steps: pictures after the first one, per curve; each changes 1 / steps of the pixels.
        deletion_fill: 'mean' (of the scan), 'zero' (black) or 'blur' (sigma S / 20).
        insertion_start: the same choice.
        batch_size: pictures per forward pass.
    """

    seed: int
    temperature: float = 1.0
    steps: int = 20
    deletion_fill: Fill = "mean"
    insertion_start: Fill = "blur"
    batch_size: int = 128


def faithfulness(
    forward: Forward,
    images: GrayImage,
    cams: Mapping[str, NDArray[Any]],
    classes: NDArray[np.int64],
    options: FaithfulnessOptions,
) -> dict[str, Any]:
    """Deletion and insertion areas, average drop and increase, of a sample of scans.

    Deletion replaces pixels, hottest first, by the fill; a faithful map makes the class's
    probability fall fast: a small area. Insertion starts from the filled picture and gives pixels
    back, hottest first: a large area. The areas are read against those of `random`, a seeded
    noise map of the same raw size.

    Args:
        forward: uint8 (n, S, S) to logits (n, k), as `Predictor.forward`.
        images: the sample, uint8 (n, S, S).
        cams: raw maps (n, h, w) by method.
        classes: the class that each map explains, (n,).
        options: how to measure.

    Returns:
        Ready for JSON: what was done (`n`, `seed`, `steps`, fills) and by method
        `deletion_auc`, `insertion_auc` (means of areas in [0, 1]), `average_drop`,
        `increase_in_confidence` (shares in [0, 1]), and `per_scan` lists of the first three.

    Raises:
        UsageError: nothing to measure, shapes that do not belong together, or steps < 1.
    """
    _check(images, cams, classes, options.steps)
    shape = next(iter(cams.values())).shape[1:]
    noise = np.random.default_rng(options.seed).random((len(images), *shape), np.float32)
    score = _Scorer(forward, options.temperature, options.batch_size)
    before = score(iter(images), classes)
    sample = _Sample(images, classes, before)
    methods = {
        name: _of_method(score, sample, maps, options)
        for name, maps in {**cams, RANDOM: noise}.items()
    }
    kept = ("seed", "steps", "deletion_fill", "insertion_start")
    how = {key: value for key, value in asdict(options).items() if key in kept}
    return {"n": len(images), **how, "methods": methods}


def curve(
    forward: Forward,
    image: GrayImage,
    cam: NDArray[Any],
    target: int,
    *,
    kind: Kind,
    steps: int = 20,
    fill: Fill = "mean",
    temperature: float = 1.0,
) -> Floats:
    """Probability of one class while one scan's pixels go or come back, hottest first.

    Args:
        forward: uint8 (n, S, S) to logits (n, k).
        image: uint8 (S, S).
        cam: raw map (h, w).
        target: class index.
        kind: 'deletion' or 'insertion'.
        steps: as for `faithfulness`.
        fill: what replaces the scan's pixels.
        temperature: the bundle's.

    Returns:
        float64 (steps + 1,) in [0, 1].
    """
    pictures = _pictures(image, cam, kind, steps, fill)
    score = _Scorer(forward, temperature, batch_size=steps + 1)
    return score(pictures, np.full(steps + 1, target))


def filled(image: GrayImage, fill: Fill) -> GrayImage:
    """The picture without its structures: its mean, black, or blurred; uint8 (S, S).

    Raises:
        UsageError: an unknown fill.
    """
    if fill == "mean":
        return np.full_like(image, round(float(image.mean())))
    if fill == "zero":
        return np.zeros_like(image)
    if fill == "blur":
        blurred = cv2.GaussianBlur(image, (0, 0), BLUR_SIGMA * max(image.shape))
        return np.asarray(blurred, dtype=np.uint8)
    raise UsageError(f"fill '{fill}' is unknown; use mean, zero or blur")


@dataclass(frozen=True)
class _Scorer:
    """Probabilities of given classes for a stream of pictures, in batches."""

    forward: Forward
    temperature: float
    batch_size: int

    def __call__(self, pictures: Iterator[GrayImage], targets: NDArray[np.int64]) -> Floats:
        parts = []
        while batch := list(islice(pictures, self.batch_size)):
            parts.append(softmax(self.forward(np.stack(batch)).logits, self.temperature))
        return np.concatenate(parts)[np.arange(len(targets)), targets]


@dataclass(frozen=True)
class _Sample:
    images: GrayImage
    classes: NDArray[np.int64]
    before: Floats  # probability of the class, nothing changed


def _of_method(
    score: _Scorer, sample: _Sample, maps: NDArray[Any], options: FaithfulnessOptions
) -> dict[str, Any]:
    areas = {
        "deletion_auc": _areas(score, sample, maps, "deletion", options),
        "insertion_auc": _areas(score, sample, maps, "insertion", options),
    }
    masked = (_masked(image, cam) for image, cam in zip(sample.images, maps, strict=True))
    lost = sample.before - score(masked, sample.classes)
    drop = np.divide(lost, sample.before, out=np.zeros_like(lost), where=sample.before > 0)
    return {
        **{name: float(values.mean()) for name, values in areas.items()},
        "average_drop": float(np.maximum(drop, 0).mean()),
        "increase_in_confidence": float((drop < 0).mean()),
        "per_scan": {name: values.tolist() for name, values in {**areas, "drop": drop}.items()},
    }


def _areas(
    score: _Scorer,
    sample: _Sample,
    maps: NDArray[Any],
    kind: Kind,
    options: FaithfulnessOptions,
) -> Floats:
    """Areas under each scan's curve, trapezoidal, over the share of pixels from 0 to 1."""
    fill = options.deletion_fill if kind == "deletion" else options.insertion_start
    pictures = (
        picture
        for image, cam in zip(sample.images, maps, strict=True)
        for picture in _pictures(image, cam, kind, options.steps, fill)
    )
    repeated = np.repeat(sample.classes, options.steps + 1)
    return area(score(pictures, repeated).reshape(len(maps), options.steps + 1))


def area(curves: Floats) -> Floats:
    """Area under curves (..., steps + 1) over [0, 1], by the trapezoidal rule."""
    return np.asarray(trapezoid(curves, dx=1 / (curves.shape[-1] - 1), axis=-1))


def _pictures(
    image: GrayImage, cam: NDArray[Any], kind: str, steps: int, fill: Fill
) -> Iterator[GrayImage]:
    """The scan with 0, 1/steps, ... 1 of its hottest pixels gone (or alone there)."""
    other = filled(image, fill)
    start, end = (image, other) if kind == "deletion" else (other, image)
    hottest_first = np.argsort(-heatmap_at(cam, (image.shape[0], image.shape[1])), axis=None)
    place = np.empty(image.shape, np.int64)
    place.flat[hottest_first] = np.arange(image.size)
    for step in range(steps + 1):
        yield np.where(place < step * image.size / steps, end, start)


def _masked(image: GrayImage, cam: NDArray[Any]) -> GrayImage:
    """The scan times its heatmap in [0, 1]: only what was hot is left."""
    heat = heatmap_at(cam, (image.shape[0], image.shape[1]))
    return np.rint(image * heat).astype(np.uint8)


def _check(
    images: GrayImage, cams: Mapping[str, NDArray[Any]], classes: NDArray[np.int64], steps: int
) -> None:
    if steps < 1:
        raise UsageError(f"{steps} steps make no curve; take 1 or more (20 is usual)")
    if not len(images) or not cams:
        raise UsageError(f"{len(images)} scans and {len(cams)} methods: pass at least one of each")
    lengths = {"images": len(images), "classes": len(classes)}
    lengths |= {name: len(maps) for name, maps in cams.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"numbers of scans differ: {lengths}; pass the same sample throughout")
    if RANDOM in cams:
        raise UsageError(f"'{RANDOM}' is the name of the baseline; name the method otherwise")
