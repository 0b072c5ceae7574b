"""Figures: valid, the same every time, and without state left behind."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from braintumor_ray.evaluation import plots

CURVE = {"fpr": [0, 0.2, 1], "tpr": [0, 0.7, 1]}
PR = {"recall": [1, 0.5, 0], "precision": [0.5, 0.8, 1]}
BINS = {"count": [0, 3, 5], "confidence": [None, 0.5, 0.9], "accuracy": [None, 0.4, 1.0]}
SWEEP = {
    "threshold": [0.9, 0.1], "sensitivity": [0.1, 1], "specificity": [1, 0.2],
    "precision": [1, 0.5], "f1": [0.2, 0.7],
}  # fmt: skip
POINTS = [{"rule": "bundle", "threshold": 0.5}, {"rule": "f1", "threshold": None}]
HISTORY = [
    {"stage": "a", "lr": 0.1, "train_loss": 1, "val_loss": 2},
    {"stage": "b", "lr": 0.01, "train_loss": 0.5, "val_loss": 1},
]
DRAWN = {
    "confusion": lambda: plots.confusion_figure([[3, 1], [0, 0]], ["tumor", "none"]),
    "roc": lambda: plots.roc_figure(CURVE, 0.8, (0.7, 0.8)),
    "roc undefined": lambda: plots.roc_figure({"fpr": [], "tpr": []}, None, (None, 1.0)),
    "pr": lambda: plots.pr_figure(PR, 0.8, (0.5, 0.8), 0.5),
    "reliability": lambda: plots.reliability_figure(BINS, 0.1, "share"),
    "sweep": lambda: plots.sweep_figure(SWEEP, POINTS),
    "sizes": lambda: plots.size_figure({name: [100, 200] for name in "abcdef"}),
    "history": lambda: plots.history_figures(HISTORY)[0],
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_valid_svg_and_the_same_every_time(name):
    first, second = DRAWN[name](), DRAWN[name]()
    assert ET.fromstring(first).tag.endswith("svg")
    assert first == second


def test_the_confusion_matrix_shows_counts_and_shares():
    counts = plots.confusion_figure([[1, 0], [0, 1]], ["a", "b"])
    others = plots.confusion_figure([[7, 3], [0, 9]], ["a", "b"])
    assert counts != others


def test_training_curves_show_what_was_recorded():
    assert len(plots.history_figures(HISTORY)) == 2  # loss and rate
    assert plots.history_figures([]) == []


def test_pyplot_is_never_loaded():
    code = (
        "import sys; from braintumor_ray.evaluation import plots; "
        "plots.confusion_figure([[1, 0], [0, 1]], ['a', 'b']); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
