"""Training curves, drawn alike in a run's curves.png and in reports.

Training is a solid line with dots, validation a dashed one with squares, each in one color
everywhere; matplotlib's object interface only.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

# Okabe and Ito (2008): distinct with any color vision; styles differ as well.
BLUE, ORANGE, GREEN, PURPLE, GRAY = "#0072B2", "#D55E00", "#009E73", "#8E4585", "#767676"
STYLES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"))
CURVES = (
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("precision", "precision (mean over classes)"),
    ("recall", "recall (mean over classes)"),
)
RATE = ("lr", "learning rate")
History = Sequence[Mapping[str, Any]]


def recorded_curves(history: History) -> list[tuple[str, str]]:
    """Key and title of each curve that a history has values for, the learning rate last."""
    shown = [curve for curve in CURVES if any(f"val_{curve[0]}" in entry for entry in history)]
    return [*shown, *([RATE] if any("lr" in entry for entry in history) else [])]


def draw_curve(axes: Axes, history: History, key: str, title: str) -> None:
    """One figure of a history over its epochs, stages divided by lines.

    Args:
        axes: to draw on.
        history: one mapping per epoch; what was not recorded is left out.
        key: of `recorded_curves`; all but the rate are drawn for training and validation.
        title: of the axes.
    """
    rate = key == RATE[0]
    lines = [(key, "learning rate")] if rate else [(f"{s}_{key}", s) for s in ("train", "val")]
    for (name, label), style in zip(lines, STYLES, strict=False):
        _draw_line(axes, history, name, style, label)
    for epoch, (before, after) in enumerate(pairwise(history), start=1):
        if after.get("stage") != before.get("stage"):
            axes.axvline(epoch + 0.5, color=GRAY, linewidth=1, linestyle="--")
    axes.set_title(title, fontsize=10.5)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if rate:
        axes.set_yscale("log")
        return
    if key != "loss":
        axes.set_ylim(0, 1.02)
    axes.legend(frameon=False)


def _draw_line(
    axes: Axes, history: History, key: str, style: tuple[str, str, str], label: str
) -> None:
    known = [(epoch, entry[key]) for epoch, entry in enumerate(history, start=1) if key in entry]
    if known:
        color, line, marker = style
        epochs, values = zip(*known, strict=True)
        axes.plot(epochs, values, line, marker=marker, markersize=3, color=color, label=label)
