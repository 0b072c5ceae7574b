"""Model parameter randomization (Adebayo et al. 2018, arXiv 1810.03292).

A map that looks the same after the network's weights were replaced by random ones shows the
picture's edges, not what the network uses.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from braintumor_ray.errors import UsageError
from braintumor_ray.explain.cam import SCORED_METHODS, cams, class_gradient
from braintumor_ray.explain.overlay import heatmap_at
from braintumor_ray.models.classifier import Classifier

Part = Literal["head", "all"]
PARTS: tuple[Part, ...] = ("head", "all")
Prepare = Callable[[NDArray[np.uint8]], Tensor]
_SSIM_SIGMA = 1.5


def randomization_check(
    model: Classifier,
    prepare: Prepare,
    images: NDArray[np.uint8],
    classes: NDArray[np.int64],
    *,
    seed: int,
    methods: Sequence[str] = SCORED_METHODS,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Compare the maps of a trained network with those of randomized copies of it.

    Scans and classes are the same throughout. A low similarity is the wanted result.

    Args:
        model: the trained network, in eval mode; it is not changed.
        prepare: uint8 (n, S, S) to the network's input (n, 3, S, S) on its device.
        images: the sample, uint8 (n, S, S).
        classes: class that the maps explain, (n,).
        seed: of the random weights.
        methods: CAM methods.
        batch_size: scans per forward pass.

    Returns:
        Ready for JSON: `n`, `seed` and by method and part ('head': only the head is random;
        'all': backbone too) `spearman` (mean rank correlation of the raw maps, -1 to 1),
        `spearman_abs` (mean of its magnitude), `ssim` (mean structural similarity of the
        heatmaps, -1 to 1) and `n_flat` (scans where either map has no pattern, left out of the
        means, which are None where no scan is left).

    Raises:
        UsageError: no scans, or another number of classes than scans.
    """
    if not len(images) or len(images) != len(classes):
        raise UsageError(f"{len(images)} scans and {len(classes)} classes; pass one class per scan")

    def maps_of(network: Classifier) -> dict[str, NDArray[np.float32]]:
        parts = []
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            parts.append(_maps(network, prepare(images[rows]), classes[rows], methods))
        return {name: np.concatenate([part[name] for part in parts]) for name in methods}

    trained = maps_of(model)
    result: dict[str, Any] = {name: {} for name in methods}
    for part in PARTS:
        random = maps_of(randomized(model, part, seed))
        for name in methods:
            result[name][part] = compare_maps(trained[name], random[name], images.shape[1])
    return {"n": len(images), "seed": seed, "methods": result}


def randomized(model: Classifier, part: Part, seed: int) -> Classifier:
    """A copy whose head, or all of it, has fresh random weights; the original is not changed.

    Every layer is drawn again by its own `reset_parameters`; BatchNorm statistics too.

    Raises:
        UsageError: an unknown part.
    """
    if part not in PARTS:
        raise UsageError(f"part '{part}' is unknown; use {', '.join(PARTS)}")
    other = copy.deepcopy(model)
    layers = other.modules() if part == "all" else other.head.modules()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            _reset(layer)
    return other


def _reset(layer: nn.Module) -> None:
    # MultiheadAttention's method has another name; its output projection is a separate layer.
    for name in ("reset_parameters", "_reset_parameters"):
        reset = getattr(layer, name, None)
        if callable(reset):
            reset()
            return


def compare_maps(
    first: NDArray[np.float32], second: NDArray[np.float32], size: int
) -> dict[str, float | int | None]:
    """Similarity of two sets of raw maps (n, h, w), scan by scan; see `randomization_check`."""
    pairs = [
        (a, b) for a, b in zip(first, second, strict=True) if _has_pattern(a) and _has_pattern(b)
    ]
    ranks = [spearman(a, b) for a, b in pairs]
    alike = [ssim(heatmap_at(a, (size, size)), heatmap_at(b, (size, size))) for a, b in pairs]
    return {
        "spearman": _mean(ranks),
        "spearman_abs": _mean([abs(value) for value in ranks]),
        "ssim": _mean(alike),
        "n_flat": len(first) - len(pairs),
    }


def spearman(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Rank correlation of two maps with a pattern, ties sharing their mean rank."""
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def ssim(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Mean structural similarity of two pictures in [0, 1] (Wang et al. 2004, Eq. 13).

    Gaussian window of sigma 1.5, 11 x 11; K1 = 0.01, K2 = 0.03.
    """

    def local(values: NDArray[Any]) -> NDArray[np.float64]:
        smooth = cv2.GaussianBlur(values, (11, 11), _SSIM_SIGMA, borderType=cv2.BORDER_REFLECT)
        return np.asarray(smooth)

    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


def _maps(
    model: Classifier, batch: Tensor, classes: NDArray[np.int64], methods: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Raw maps of one batch for the given classes, by method."""
    with torch.no_grad():
        features = model.features(batch)
    wanted = torch.from_numpy(classes).to(features.device)
    maps = cams(features, class_gradient(model, features, lambda _: wanted), methods)
    return {name: maps[name].cpu().numpy() for name in methods}


def _has_pattern(cam: NDArray[np.float32]) -> bool:
    return bool(heatmap_at(cam, (cam.shape[0], cam.shape[1])).any())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
