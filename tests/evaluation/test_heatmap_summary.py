"""Scores of a catalog's heatmaps, and their means with intervals per class and method."""

import json

import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.errors import UsageError
from braintumor_ray.localization.outlines import TruthError
from braintumor_ray.localization.scores import MEASURES
from braintumor_ray.localization.summary import score_heatmaps, summarize_localization
from braintumor_ray.localization.truth import load_truth

SIZE = 32


def scans(paths):
    count = len(paths)
    return pa.table(
        {
            "path": paths,
            "frame": pa.array([0] * count, pa.int32()),
            "height": pa.array([100] * count, pa.int32()),
            "width": pa.array([200] * count, pa.int32()),
        }
    )


@pytest.fixture
def truth(tmp_path):
    rows = ["a/1.jpg,0,0,0.5,0.5", "a/2.jpg,0.5,0.5,1,1", "b/1.jpg,0,0,0.5,0.5"]
    (tmp_path / "boxes.csv").write_text("path,x_min,y_min,x_max,y_max\n" + "\n".join(rows) + "\n")
    return load_truth(tmp_path / "boxes.csv")


def quarter(top, left):
    cam = np.zeros((SIZE, SIZE), np.float32)
    cam[top : top + 16, left : left + 16] = 1
    return cam


def test_each_scan_meets_its_own_truth(truth):
    table = scans(["a/1.jpg", "c/no_truth.jpg", "a/2.jpg", "b/1.jpg"])
    cams = {"gradcam": np.stack([quarter(0, 0), quarter(0, 0), quarter(16, 16), quarter(16, 16)])}
    found = score_heatmaps(table, cams, truth, image_size=SIZE, seed=0).to_pylist()
    iou = {row["row"]: row["iou"] for row in found if row["method"] == "gradcam"}
    assert iou == {0: 1, 2: 1, 3: 0}


def test_summary_by_class_is_ready_for_json(truth):
    table = scans(["a/1.jpg", "a/2.jpg", "b/1.jpg"])
    cams = {"gradcam": np.stack([quarter(0, 0), quarter(0, 0), quarter(0, 0)])}
    scores = score_heatmaps(table, cams, truth, image_size=SIZE, seed=0)
    summary = summarize_localization(
        scores, np.array(["p1", "p2", "p3"]), ["a", "a", "b"], seed=0, n_boot=100
    )
    assert json.loads(json.dumps(summary)) == summary
    assert set(summary["classes"]) == {"all", "a", "b"}
    assert set(summary["classes"]["all"]) == {"gradcam", "centre", "random"}
    assert summary["classes"]["all"]["gradcam"]["iou"]["estimate"] == pytest.approx(2 / 3)
    assert summary["classes"]["a"]["gradcam"]["iou"]["estimate"] == 0.5
    assert summary["classes"]["a"]["gradcam"]["n"] == 2
    assert summary["classes"]["b"]["gradcam"]["iou"]["low"] is None  # one patient
    assert summary["classes"]["all"]["gradcam"]["mean_mask_area"] == 0.25
    for measure in MEASURES:
        interval = summary["classes"]["all"]["gradcam"][measure]
        assert interval["low"] <= interval["estimate"] <= interval["high"]
        assert interval["n_groups"] == 3


def test_intervals_go_by_patient(truth):
    table = scans(["a/1.jpg", "a/2.jpg", "b/1.jpg"])
    cams = {"m": np.stack([quarter(0, 0), quarter(0, 0), quarter(0, 0)])}
    scores = score_heatmaps(table, cams, truth, image_size=SIZE, seed=0)
    one = summarize_localization(scores, np.array(["p"] * 3), seed=0)["classes"]["all"]["m"]
    assert one["iou"]["n_groups"] == 1
    assert one["iou"]["low"] is None


def test_truth_of_other_scans_is_refused(truth):
    with pytest.raises(TruthError, match="none of 3 entries"):
        score_heatmaps(scans(["z.jpg"]), {"m": np.ones((1, 4, 4))}, truth, image_size=8, seed=0)


def test_nothing_scored_is_said(truth):
    empty = score_heatmaps(
        scans(["a/1.jpg"]), {"m": np.ones((1, 4, 4))}, truth, image_size=8, seed=0
    ).slice(0, 0)
    with pytest.raises(UsageError, match="no heatmap was scored"):
        summarize_localization(empty, np.array(["p"]), seed=0)
