"""Thinning of a curve to the few points that carry its shape."""

import heapq

import numpy as np

from braintumor_ray.metrics import MetricsError
from braintumor_ray.metrics.inputs import Floats, Ints


def thin_polyline(x: Floats, y: Floats, max_points: int) -> Ints:
    """Choose points of a polyline, its ends and then its sharpest corners first.

    Repeatedly adds the point farthest from the line drawn so far (Ramer 1972; Douglas and
    Peucker 1973, with a budget of points in place of a tolerance).

    Args:
        x: abscissae, float (m,), m >= 1.
        y: ordinates, float (m,).
        max_points: at most this many, 2 or more.

    Returns:
        Ascending indices of the points kept, int64 (<= max_points,); points that lie on the line
        between their neighbours may be left out below that number.

    Raises:
        MetricsError: ``max_points`` is below 2.
    """
    if max_points < 2:
        raise MetricsError(f"max_points is {max_points}; a curve has two ends: pass 2 or more")
    if len(x) <= max_points:
        return np.arange(len(x))
    last = len(x) - 1
    keep = [0, last]
    segments = [_farthest(x, y, 0, last)]
    while segments and len(keep) < max_points:
        distance, at, low, high = heapq.heappop(segments)
        if distance == 0:
            break
        keep.append(at)
        for ends in ((low, at), (at, high)):
            if ends[1] - ends[0] > 1:
                heapq.heappush(segments, _farthest(x, y, *ends))
    return np.array(sorted(keep), dtype=np.int64)


def _farthest(x: Floats, y: Floats, low: int, high: int) -> tuple[float, int, int, int]:
    """(minus the distance, index, low, high) of the inner point farthest from the chord."""
    dx, dy = x[low + 1 : high] - x[low], y[low + 1 : high] - y[low]
    chord_x, chord_y = x[high] - x[low], y[high] - y[low]
    length = np.hypot(chord_x, chord_y)
    away = np.abs(dx * chord_y - dy * chord_x) / length if length else np.hypot(dx, dy)
    at = int(away.argmax())
    return -float(away[at]), low + 1 + at, low, high
