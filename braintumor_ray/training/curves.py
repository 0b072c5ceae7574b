"""Training curves as a picture, and as TensorBoard events."""

from pathlib import Path
from typing import Any

PANELS = (
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("precision", "precision (macro)"),
    ("recall", "recall (macro)"),
)


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Loss, accuracy, precision, recall (training and validation) and the rate, over epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(PANELS) + 1)
    epochs = [entry["epoch"] for entry in history]
    for axis, (key, title) in zip(axes, PANELS, strict=False):
        for split, style in (("train", "--"), ("val", "-")):
            values = [entry[f"{split}_{key}"] for entry in history]
            axis.plot(epochs, values, style, marker="o", markersize=3, label=split)
        axis.set_title(title)
        if key != "loss":
            axis.set_ylim(0, 1.02)
    axes[0].legend(frameon=False)
    axes[-1].plot(epochs, [entry["lr"] for entry in history], marker="o", markersize=3)
    axes[-1].set_yscale("log")
    axes[-1].set_title("learning rate")
    starts = [
        a["epoch"] for a, b in zip(history[1:], history, strict=False) if a["stage"] != b["stage"]
    ]
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        for start in starts:
            axis.axvline(start - 0.5, color="grey", linewidth=1)
    figure.savefig(path, dpi=110)


def write_events(history: list[dict[str, Any]], folder: Path) -> None:
    """Every figure of every epoch as a TensorBoard event file."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder))
    try:
        for entry in history:
            for name, value in entry.items():
                if isinstance(value, int | float) and name != "epoch":
                    writer.add_scalar(name.replace("_", "/", 1), value, entry["epoch"])
    finally:
        writer.close()
