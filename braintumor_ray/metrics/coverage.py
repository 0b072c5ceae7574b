"""What prediction sets achieve on labeled scans."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.metrics.conformal import SetRule, in_set
from braintumor_ray.metrics.intervals import TableStatistic, bootstrap_table
from braintumor_ray.types import Floats

ANY = slice(None)
Part = tuple[slice | int, ...]


def set_metrics(
    labels: NDArray[Any],
    probs: NDArray[Any],
    rule: SetRule,
    class_names: Sequence[str],
    groups: NDArray[Any],
    **resampling: int,
) -> dict[str, Any]:
    """What prediction sets achieve on labeled scans, ready for JSON.

    Args:
        labels: class indices, int (n,).
        probs: float32 (n, k).
        rule: of the bundle.
        class_names: k names.
        groups: patient or duplicate-group ids, (n,).
        resampling: `seed` and `n_boot`.

    Returns:
        `level` (the stated coverage); `coverage`, `empty`, `single`, `several` (shares of scans)
        and `single_right` (share of the sets of one class that are right), each an interval;
        `mean_size`; `per_class`: `scans`, `coverage` (an interval) and `mean_size`.
    """
    classes, k = np.asarray(labels, np.int64), len(class_names)
    inside = in_set(probs, rule.thresholds)
    size, covered = inside.sum(axis=1), inside[np.arange(len(classes)), classes]
    # A cell per class, size (none, one, several), and whether the class is in the set.
    cells = (classes * 3 + np.minimum(size, 2)) * 2 + covered
    shares = {
        "coverage": _share(k, (ANY, ANY, 1)),
        "empty": _share(k, (ANY, 0, ANY)),
        "single": _share(k, (ANY, 1, ANY)),
        "several": _share(k, (ANY, 2, ANY)),
        "single_right": _share(k, (ANY, 1, 1), (ANY, 1, ANY)),
    }
    of_class = {name: _share(k, (i, ANY, 1), (i,)) for i, name in enumerate(class_names)}
    found = bootstrap_table(shares, groups, cells, 6 * k, **resampling)  # type: ignore[arg-type]
    covers = bootstrap_table(of_class, groups, cells, 6 * k, **resampling)  # type: ignore[arg-type]
    return {
        "level": rule.coverage,
        **{name: asdict(interval) for name, interval in found.items()},
        "mean_size": float(size.mean()),
        "per_class": {
            name: {
                "scans": int((classes == i).sum()),
                "coverage": asdict(covers[name]),
                "mean_size": float(size[classes == i].mean()) if (classes == i).any() else None,
            }
            for i, name in enumerate(class_names)
        },
    }


def _share(k: int, part: Part, whole: Part = ()) -> TableStatistic:
    """Counts of some cells by those of others; both index (class, size, covered)."""

    def statistic(counts: Floats) -> Floats:
        table = counts.reshape(-1, k, 3, 2)
        above, below = (
            table[(ANY, *cells)].reshape(len(table), -1).sum(axis=1) for cells in (part, whole)
        )
        return np.divide(above, below, out=np.full(len(table), np.nan), where=below > 0)

    return statistic
