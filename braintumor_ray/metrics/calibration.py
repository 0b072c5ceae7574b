"""Temperature scaling, and how well probabilities match frequencies."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.inputs import binary_view, check_binary, check_logits, check_probs
from braintumor_ray.types import Bools, Floats

TEMPERATURE_BOUNDS = (0.05, 20.0)


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> Floats:
    """Probabilities from logits (..., k) divided by ``temperature`` > 0; stable, float64."""
    scaled = np.asarray(logits, dtype=np.float64) / _check_temperature(temperature)
    probs: Floats = scipy.special.softmax(scaled, axis=-1)
    return probs


def log_softmax(logits: NDArray[Any], temperature: float = 1.0) -> Floats:
    """Log-probabilities from logits (..., k) divided by ``temperature`` > 0; stable, float64."""
    scaled = np.asarray(logits, dtype=np.float64) / _check_temperature(temperature)
    log_probs: Floats = scipy.special.log_softmax(scaled, axis=-1)
    return log_probs


def fit_temperature(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Temperature T that minimizes the NLL of softmax(logits / T) (Guo et al. 2017, section 4.2).

    Searched over log T, in which the NLL has one valley, between 0.05 and 20. A value towards
    either end means that the data do not determine it: every scan is right (low: any small T will
    do), or nothing was learnt (20).

    Args:
        logits: before softmax, finite, float (n, k).
        labels: class indices in 0..k-1, int (n,).

    Raises:
        MetricsError: NaN or infinite logits, a label out of range, lengths that differ, no rows.
    """
    classes, array = check_logits(logits, labels)
    rows = np.arange(len(classes))

    def mean_nll(log_temperature: float) -> float:
        log_probs = log_softmax(array, math.exp(log_temperature))
        return -float(log_probs[rows, classes].mean())

    low, high = TEMPERATURE_BOUNDS
    found = minimize_scalar(
        mean_nll,
        bounds=(math.log(low), math.log(high)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(float(found.x))


def nll(labels: NDArray[Any], probs: NDArray[Any]) -> float:
    """Mean negative log-likelihood in nats.

    A probability of 0 counts as the smallest normal float64 (708 nats), so that one confident
    mistake stays a number.

    Args:
        labels: class indices, int (n,).
        probs: probabilities, float (n, k).

    Raises:
        MetricsError: see ``braintumor_ray.metrics.inputs.check_probs``.
    """
    classes, array = check_probs(probs, labels)
    true_prob = array[np.arange(len(classes)), classes]
    return -float(np.log(np.maximum(true_prob, np.finfo(np.float64).tiny)).mean())


def brier(labels: NDArray[Any], probs: NDArray[Any]) -> float:
    """Multi-class Brier score in [0, 2]: mean over scans of the summed squared errors (1950).

    Args:
        labels: class indices, int (n,).
        probs: probabilities, float (n, k).

    Raises:
        MetricsError: see ``braintumor_ray.metrics.inputs.check_probs``.
    """
    classes, array = check_probs(probs, labels)
    truth = np.eye(array.shape[1])[classes]
    return float(((array - truth) ** 2).sum(axis=1).mean())


def reliability_bins(
    labels: NDArray[Any], probs: NDArray[Any], n_bins: int = 15
) -> dict[str, list[Any]]:
    """Reliability diagram of the top class (Guo et al. 2017, equations 1 and 2).

    Args:
        labels: class indices, int (n,).
        probs: probabilities, float (n, k).
        n_bins: equally wide bins, each open below and closed above.

    Returns:
        Lists of ``n_bins``: ``lower``, ``upper``, ``count``, ``confidence`` (mean top
        probability) and ``accuracy``, both None in an empty bin.

    Raises:
        MetricsError: see ``braintumor_ray.metrics.inputs.check_probs``.
    """
    classes, array = check_probs(probs, labels)
    return _bins(array.max(axis=1), array.argmax(axis=1) == classes, n_bins)


def binary_reliability_bins(
    truth: NDArray[Any], score: NDArray[Any], n_bins: int = 15
) -> dict[str, list[Any]]:
    """Reliability diagram of the positive score: ``accuracy`` is the share that is positive.

    Args:
        truth: bool or 0/1, (n,).
        score: probability of being positive in [0, 1], float (n,).
        n_bins: equally wide bins, each open below and closed above.

    Returns:
        As ``reliability_bins``.

    Raises:
        MetricsError: the inputs do not fit or a score is outside [0, 1].
    """
    flags, values = check_binary(truth, score)
    # Summed float32 probabilities may exceed 1 in the last bits.
    outside = np.flatnonzero((values < 0) | (values > 1 + 1e-3))
    if outside.size:
        raise MetricsError(
            f"score {values[outside[0]]:g} in row {outside[0]} is not in [0, 1]; "
            "calibration is of probabilities: apply softmax first"
        )
    return _bins(np.minimum(values, 1.0), flags, n_bins)


def ece(labels: NDArray[Any], probs: NDArray[Any], n_bins: int = 15) -> float:
    """Expected calibration error of the top class in [0, 1] (Guo et al. 2017, equation 3).

    Args:
        labels: class indices, int (n,).
        probs: probabilities, float (n, k).
        n_bins: equally wide bins.

    Raises:
        MetricsError: see ``braintumor_ray.metrics.inputs.check_probs``.
    """
    return _expected_gap(reliability_bins(labels, probs, n_bins))


def binary_ece(truth: NDArray[Any], score: NDArray[Any], n_bins: int = 15) -> float:
    """Expected calibration error of the positive score in [0, 1].

    Args:
        truth: bool or 0/1, (n,).
        score: probability of being positive in [0, 1], float (n,).
        n_bins: equally wide bins.

    Raises:
        MetricsError: the inputs do not fit or a score is outside [0, 1].
    """
    return _expected_gap(binary_reliability_bins(truth, score, n_bins))


def calibration_metrics(
    labels: NDArray[Any], probs: NDArray[Any], positive: Sequence[int], n_bins: int = 15
) -> dict[str, Any]:
    """NLL, Brier score, both ECEs and their reliability bins, ready for JSON.

    Args:
        labels: class indices, int (n,).
        probs: probabilities, float (n, k).
        positive: indices of the positive (tumor) classes.
        n_bins: equally wide bins.

    Raises:
        MetricsError: see ``braintumor_ray.metrics.inputs.binary_view``.
    """
    truth, score = binary_view(labels, probs, positive)
    return {
        "nll": nll(labels, probs),
        "brier": brier(labels, probs),
        "ece": ece(labels, probs, n_bins),
        "binary_ece": binary_ece(truth, score, n_bins),
        "reliability": reliability_bins(labels, probs, n_bins),
        "binary_reliability": binary_reliability_bins(truth, score, n_bins),
    }


def _bins(confidence: Floats, hit: Bools, n_bins: int) -> dict[str, list[Any]]:
    if n_bins < 1:
        raise MetricsError(f"n_bins is {n_bins}; a reliability diagram needs 1 bin or more")
    edges = np.linspace(0, 1, n_bins + 1)
    # Rounding can lift a top probability of 1 above the last edge; 0 belongs to the first bin.
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)
    count = np.bincount(bins, minlength=n_bins)
    return {
        "lower": edges[:-1].tolist(),
        "upper": edges[1:].tolist(),
        "count": count.tolist(),
        "confidence": _bin_means(bins, confidence, count),
        "accuracy": _bin_means(bins, hit.astype(np.float64), count),
    }


def _bin_means(bins: NDArray[Any], values: Floats, count: NDArray[Any]) -> list[float | None]:
    totals = np.bincount(bins, weights=values, minlength=len(count))
    return [float(t / c) if c else None for t, c in zip(totals, count, strict=True)]


def _expected_gap(bins: dict[str, list[Any]]) -> float:
    rows = zip(bins["count"], bins["accuracy"], bins["confidence"], strict=True)
    gaps = [count * abs(accuracy - confidence) for count, accuracy, confidence in rows if count]
    return float(sum(gaps) / sum(bins["count"]))


def _check_temperature(temperature: float) -> float:
    if not (math.isfinite(temperature) and temperature > 0):
        raise MetricsError(f"temperature {temperature} is not above 0; 1 leaves logits as they are")
    return temperature
