"""Galleries: the right scans, worst first."""

import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.evaluation.evaluated import Evaluated, evaluate_rows
from braintumor_ray.evaluation.galleries import choose_galleries, draw_galleries, write_galleries
from braintumor_ray.evaluation.inference import ScanOutputs
from braintumor_ray.evaluation.selection import Truth, select_split
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.predict.predictor import Predictor

NAMES = ("glioma", "none", "pituitary")


def evaluated(run, truth, probs, groups=None):
    """Outputs as if a network of three classes had said `probs`; None: unreadable."""
    fields = load_bundle(run.bundle).fields.model_copy(
        update={
            "class_names": NAMES,
            "positive_classes": ("glioma", "pituitary"),
            "threshold": 0.5,
            "temperature": 1.0,
        }
    )
    n = len(truth)
    logits = np.array([np.full(3, np.nan) if p is None else np.log(p) for p in probs], np.float32)
    status = ["quarantined" if p is None else "ok" for p in probs]
    index = np.array([NAMES.index(name) for name in truth])
    outputs = ScanOutputs(
        status, [None] * n, [None] * n, [None] * n, [None] * n,
        np.arange(n) if groups is None else np.array(groups), logits,
    )  # fmt: skip
    rows = pa.table({"path": [f"{i}.png" for i in range(n)]})
    return Evaluated(fields, rows, Truth(list(truth), index, 0, 0), outputs, np.arange(n), "group")


def test_each_scan_is_in_the_galleries_where_it_belongs(run):
    found = choose_galleries(
        evaluated(
            run,
            ["glioma", "glioma", "none", "none", "glioma", "pituitary", "none", "glioma"],
            [
                (0.3, 0.6, 0.1),  # 0 missed
                (0.1, 0.8, 0.1),  # 1 missed, more surely
                (0.5, 0.2, 0.3),  # 2 false alarm
                (0.9, 0.05, 0.05),  # 3 false alarm, more surely
                (0.2, 0.1, 0.7),  # 4 tumor of the wrong type
                (0.1, 0.1, 0.8),  # 5 right
                (0.02, 0.97, 0.01),  # 6 right, no tumor
                None,  # 7 unreadable
            ],
        ),
        most=6,
    )
    assert found["false_negatives"].tolist() == [1, 0]
    assert found["false_positives"].tolist() == [3, 2]
    assert found["confused_types"].tolist() == [4]
    assert found["true_positives"].tolist() == [5]
    assert found["most_certain"].tolist()[0] == 6
    assert found["least_certain"].tolist()[0] == 2
    assert all(7 not in rows for rows in found.values())


def test_copies_of_one_image_are_shown_once(run):
    probs = [(0.1, 0.8, 0.1), (0.2, 0.7, 0.1), (0.25, 0.65, 0.1)]
    found = choose_galleries(evaluated(run, ["glioma"] * 3, probs, groups=[4, 4, 5]), most=6)
    assert found["false_negatives"].tolist() == [0, 2]


def test_true_positives_are_spread_from_sure_to_unsure(run):
    sure = np.linspace(0.99, 0.55, 12)
    found = choose_galleries(
        evaluated(run, ["glioma"] * 12, [(p, 0.99 - p + 0.005, 0.005) for p in sure]), most=3
    )
    assert found["true_positives"].tolist() == [0, 6, 11]


@pytest.fixture(scope="module")
def drawn(run):
    predictor = Predictor.from_bundle(run.bundle, "cpu", precision="fp32")
    return predictor, evaluate_rows(predictor, select_split(run.catalog, "test"))


class Ring:
    """Truth that knows one scan, and records what it was asked."""

    def __init__(self, path):
        self.path, self.asked = path, []

    def mask(self, path, shape, scan_shape=None, frame=0):
        self.asked.append((path, shape, scan_shape, frame))
        mask = np.zeros(shape, bool)
        mask[5:-5, 5:-5] = True
        return mask if path == self.path else None


def test_truth_is_drawn_where_there_is_some(drawn):
    predictor, outputs = drawn
    plain = draw_galleries(predictor, outputs, most=2)
    path = plain[0].tiles[0]["path"]
    truth = Ring(path)
    marked = draw_galleries(predictor, outputs, most=2, truth=truth)
    for before, after in zip(plain, marked, strict=True):
        for tile, other in zip(before.tiles, after.tiles, strict=True):
            assert (tile["image"] != other["image"]) == (tile["path"] == path)
    assert all(scan_shape is not None for _, _, scan_shape, _ in truth.asked)


def test_captions_are_the_measured_figures(drawn):
    predictor, outputs = drawn
    for gallery in draw_galleries(predictor, outputs, most=2):
        assert len(gallery.tiles) <= 2 <= max(2, gallery.total)
        for tile in gallery.tiles:
            row = outputs.rows["path"].to_pylist().index(tile["path"])
            assert tile["probability"] == pytest.approx(np.nanmax(outputs.all_probs[row]))
            assert tile["right"] == (tile["predicted"] == tile["true_class"])


def test_contact_sheets_are_written(drawn, tmp_path):
    galleries = draw_galleries(*drawn, most=1)
    names = write_galleries(galleries, tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
