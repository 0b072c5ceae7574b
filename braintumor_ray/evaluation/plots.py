"""Figures of an evaluation as SVG: readable in print, distinct without color.

matplotlib's object interface only: no pyplot, no state, nothing to close. Each function takes
parts of metrics.json (or of a run's history) and returns an SVG document; `_as_svg` makes the axes.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from braintumor_ray.pages.curves import BLUE, GRAY, ORANGE, STYLES, draw_curve, recorded_curves

_STYLE = {
    "font.size": 10.5,
    "axes.grid": True,
    "grid.color": "#d9dce1",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.hashsalt": "braintumor-ray",  # the same picture gives the same bytes
}
_TICK = 32  # letters of a class name on an axis
P = ParamSpec("P")


def _as_svg(draw: Callable[Concatenate[Axes, P], None]) -> Callable[P, str]:
    """Make of a function that draws on axes one that returns an SVG document."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(6.4, 4.8), layout="constrained")
            draw(figure.subplots(), *args, **kwargs)
            buffer = io.StringIO()
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
            return buffer.getvalue()

    return drawn


@_as_svg
def confusion_figure(
    axes: Axes,
    matrix: Sequence[Sequence[int]],
    names: Sequence[str],
    rule: str = "likeliest class",
    title: str = "Confusion matrix",
) -> None:
    """Counts and row shares, true classes down; across is what the rule called them.

    Args:
        axes: to draw on.
        matrix: counts (k, k).
        names: of the k classes.
        rule: by which scans were called.
        title: its first line; the second one explains the numbers.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    side = 2.6 + 0.75 * len(names)
    _resize(axes, max(side + 0.6, 4.4), side)
    axes.grid(visible=False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        share = shares[row, column]
        text = f"{int(counts[row, column])}\n{share:.0%}"
        ink = "white" if share > 0.55 else "black"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=10)
    words = [_tick(name) for name in names]
    axes.set_xticks(range(len(names)), words, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), words)
    axes.set(xlabel=rule, ylabel="true class")
    axes.set_title(f"{title}\ncount and share of the true class", fontsize=10.5)


def _tick(name: str) -> str:
    """A class name on an axis; of a long one the middle goes, as ends distinguish classes."""
    words = name.replace("_", " ")
    return words if len(words) <= _TICK else f"{words[:16]} ... {words[-13:]}"


@_as_svg
def roc_figure(
    axes: Axes, curve: Mapping[str, Sequence[Any]], area: float | None, point: tuple[Any, Any]
) -> None:
    """ROC curve with its area and the bundle's operating point (sensitivity, specificity)."""
    _square(axes, "1 - specificity", "sensitivity", "ROC curve, tumor against none")
    axes.plot([0, 1], [0, 1], ":", color=GRAY, linewidth=1.2, label="chance")
    axes.plot(curve["fpr"], curve["tpr"], color=BLUE, label=f"area {_number(area)}")
    if None not in point:
        _mark(axes, 1 - point[1], point[0])
    axes.legend(loc="lower right")


@_as_svg
def pr_figure(
    axes: Axes,
    curve: Mapping[str, Sequence[Any]],
    area: float | None,
    point: tuple[Any, Any],
    share: float,
) -> None:
    """Precision-recall curve with average precision and operating point (sensitivity, precision).

    `share` is that of positive scans: the precision that chance reaches.
    """
    _square(axes, "sensitivity (recall)", "precision", "Precision and recall, tumor")
    axes.axhline(share, linestyle=":", color=GRAY, linewidth=1.2, label="chance")
    recall, precision = curve["recall"], curve["precision"]
    axes.step(recall, precision, where="post", color=BLUE, label=f"area {_number(area)}")
    if None not in point:
        _mark(axes, point[0], point[1])
    axes.legend(loc="lower left")


@_as_svg
def reliability_figure(
    axes: Axes, bins: Mapping[str, Sequence[Any]], ece: float, share: str
) -> None:
    """Share that came true against probability per bin, bubbles sized by the number of scans."""
    filled = [i for i, count in enumerate(bins["count"]) if count]
    count = np.array([bins["count"][i] for i in filled], dtype=np.float64)
    confidence = [bins["confidence"][i] for i in filled]
    accuracy = [bins["accuracy"][i] for i in filled]
    _square(axes, "predicted probability", share, f"Reliability: {share}")
    axes.plot([0, 1], [0, 1], ":", color=GRAY, linewidth=1.2, label="perfectly calibrated")
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1.2)
    size = 20 + 180 * count / count.max()
    label = f"bins, ECE {_number(ece)}"
    axes.scatter(confidence, accuracy, s=size, color=BLUE, edgecolor="white", label=label)
    axes.legend(loc="best")


@_as_svg
def sweep_figure(
    axes: Axes, sweep: Mapping[str, Sequence[float]], points: Sequence[Mapping[str, Any]]
) -> None:
    """Sensitivity, specificity, precision and F1 over the threshold, operating points marked."""
    names = ("sensitivity", "specificity", "precision", "f1")
    for name, (color, line, _) in zip(names, STYLES, strict=True):
        axes.plot(sweep["threshold"], sweep[name], line, color=color, label=name)
    for point in points:
        if point["rule"] == "bundle":
            axes.axvline(point["threshold"], color="black", linewidth=1, label="bundle")
        elif point["threshold"] is not None:
            axes.axvline(point["threshold"], color=GRAY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="threshold of the tumor probability", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("Threshold sweep", fontsize=10.5)
    _legend_below(axes)


@_as_svg
def size_figure(axes: Axes, sizes: Mapping[str, Sequence[float]]) -> None:
    """Histogram of the scans' size (square root of the pixel count) per class, as steps."""
    everything = np.concatenate([np.asarray(values, np.float64) for values in sizes.values()])
    edges = np.histogram_bin_edges(everything, bins=24).tolist()
    _resize(axes, 6.4, 4.0)
    for number, (name, values) in enumerate(sizes.items()):
        color, line, _ = STYLES[number % len(STYLES)]
        axes.hist(
            values, bins=edges, histtype="step", color=color, linestyle=line, linewidth=1.6,
            label=name.replace("_", " "),
        )  # fmt: skip
    axes.set(xlabel="size, pixels (square root of height x width)", ylabel="scans")
    _legend_below(axes)


def history_figures(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Training curves over all epochs, one figure each, as `curves.png` of a run has them.

    Args:
        history: one mapping per epoch; what was not recorded is left out.
    """
    return [_history_figure(history, key, title) for key, title in recorded_curves(history)]


@_as_svg
def _history_figure(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, title: str) -> None:
    _resize(axes, 4.4, 3.2)
    draw_curve(axes, history, key, title)


def _resize(axes: Axes, width: float, height: float) -> None:
    """Set the figure's size in inches."""
    assert isinstance(axes.figure, Figure)
    axes.figure.set_size_inches(width, height)


def _square(axes: Axes, x: str, y: str, title: str) -> None:
    _resize(axes, 5.6, 5.0)
    axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(title, fontsize=10.5)


def _legend_below(axes: Axes) -> None:
    axes.figure.legend(loc="outside lower center", ncols=3)


def _mark(axes: Axes, x: float, y: float) -> None:
    axes.plot([x], [y], "s", color=ORANGE, markersize=7, label="bundle's threshold", zorder=3)


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
