"""Classification metrics: equal to scikit-learn and torchmetrics, None where undefined."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from braintumor_ray.errors import BrainTumorError, MetricsError
from braintumor_ray.metrics.classification import (
    binary_metrics,
    classification_metrics,
    pr_curve_points,
    roc_curve_points,
)
from braintumor_ray.metrics.inputs import binary_view

NAMES = ["glioma", "meningioma", "pituitary", "no_tumor"]
POSITIVE = (0, 1, 2)


def random_predictions(seed, n=300, k=4, digits=None):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(k), n)
    if digits is not None:  # coarse scores, so that many tie
        probs = np.round(probs, digits)
        probs = probs / probs.sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(k, p=row) for row in probs])
    return labels, probs


def one_hot(predicted, k):
    return np.eye(k)[predicted]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [None, 1])
def test_every_value_equals_scikit_learn(seed, digits):
    labels, probs = random_predictions(seed, digits=digits)
    found = classification_metrics(labels, probs, NAMES, POSITIVE, 0.7)
    predicted = probs.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(labels, predicted)
    )
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, predicted))
    assert found["macro_auroc"] == pytest.approx(sk.roc_auc_score(labels, probs, multi_class="ovr"))
    assert found["confusion_matrix"] == sk.confusion_matrix(labels, predicted).tolist()
    report = sk.classification_report(labels, predicted, target_names=NAMES, output_dict=True)
    for c, name in enumerate(NAMES):
        row = found["per_class"][name]
        assert row["precision"] == pytest.approx(report[name]["precision"])
        assert row["recall"] == pytest.approx(report[name]["recall"])
        assert row["f1"] == pytest.approx(report[name]["f1-score"])
        assert row["support"] == report[name]["support"]
        assert row["specificity"] == pytest.approx(sk.recall_score(labels != c, predicted != c))
        assert row["auroc"] == pytest.approx(sk.roc_auc_score(labels == c, probs[:, c]))
        assert row["average_precision"] == pytest.approx(
            sk.average_precision_score(labels == c, probs[:, c])
        )


@pytest.mark.parametrize("seed", range(3))
def test_multiclass_values_equal_torchmetrics(seed, torchmetrics_functional):
    tm = torchmetrics_functional
    labels, probs = random_predictions(seed)
    found = classification_metrics(labels, probs, NAMES, POSITIVE, 0.7)
    p, y = torch.from_numpy(probs), torch.from_numpy(labels)
    assert found["macro_auroc"] == pytest.approx(float(tm.multiclass_auroc(p, y, 4)), abs=1e-6)
    assert found["mcc"] == pytest.approx(float(tm.multiclass_matthews_corrcoef(p, y, 4)), abs=1e-6)
    specificity = tm.multiclass_specificity(p, y, 4, average="none").tolist()
    assert [found["per_class"][n]["specificity"] for n in NAMES] == pytest.approx(specificity)
    assert found["confusion_matrix"] == tm.multiclass_confusion_matrix(p, y, 4).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_binary_block_equals_torchmetrics_on_the_summed_probability(seed, torchmetrics_functional):
    tm = torchmetrics_functional
    labels, probs = random_predictions(seed)
    found = classification_metrics(labels, probs, NAMES, POSITIVE, 0.7)["binary"]
    score = torch.from_numpy(probs[:, :3].sum(axis=1))
    truth = torch.from_numpy((labels < 3).astype(np.int64))
    expected = {
        "sensitivity": tm.binary_recall(score, truth, threshold=0.7),
        "specificity": tm.binary_specificity(score, truth, threshold=0.7),
        "precision": tm.binary_precision(score, truth, threshold=0.7),
        "f1": tm.binary_f1_score(score, truth, threshold=0.7),
        "accuracy": tm.binary_accuracy(score, truth, threshold=0.7),
        "npv": tm.binary_precision(1 - score, 1 - truth, threshold=0.3),
        "auroc": tm.binary_auroc(score, truth),
        "average_precision": tm.binary_average_precision(score, truth),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6), name


def test_hand_worked_three_scans_of_each_of_two_classes():
    labels = np.array([0, 0, 0, 1, 1, 1])
    tumor = np.array([0.9, 0.6, 0.4, 0.7, 0.2, 0.1])
    probs = np.stack([tumor, 1 - tumor], axis=1)
    found = classification_metrics(labels, probs, ["tumor", "no_tumor"], (0,), 0.65)
    assert found["n"] == 6
    assert found["confusion_matrix"] == [[2, 1], [1, 2]]
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["mcc"] == pytest.approx((2 * 2 - 1 * 1) / 9)
    # At 0.65 the scans at 0.9 and 0.7 are positive: one right, one wrong.
    assert found["binary"] == pytest.approx(
        {
            "threshold": 0.65,
            "tp": 1,
            "fp": 1,
            "fn": 2,
            "tn": 2,
            "sensitivity": 1 / 3,
            "specificity": 2 / 3,
            "precision": 1 / 2,
            "npv": 2 / 4,
            "f1": 2 / 5,
            "accuracy": 3 / 6,
            "balanced_accuracy": 1 / 2,
            "auroc": 7 / 9,  # 9 pairs; 0.6 and 0.4 lose to 0.7
            "average_precision": (1 + 2 / 3 + 3 / 4) / 3,
        }
    )


def test_a_score_at_the_threshold_is_positive():
    found = binary_metrics(np.array([1, 0]), np.array([0.5, 0.25]), 0.5)
    assert (found["tp"], found["fn"]) == (1, 0)
    assert binary_metrics(np.array([1, 0]), np.array([0.5, 0.25]), 0.25)["fp"] == 1


def test_columns_of_the_confusion_matrix_are_predictions():
    labels = np.array([0, 0, 0, 1])
    probs = one_hot(np.array([2, 2, 1, 1]), 3)
    found = classification_metrics(labels, probs, ["a", "b", "c"], (0,), 0.5)
    assert found["confusion_matrix"] == [[0, 1, 2], [0, 1, 0], [0, 0, 0]]


def test_values_of_an_absent_class_are_none_and_leave_the_means():
    labels = np.array([0, 0, 1, 1])
    probs = one_hot(np.array([0, 1, 1, 1]), 3)
    found = classification_metrics(labels, probs, ["a", "b", "absent"], (0,), 0.5)
    assert found["per_class"]["absent"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
        "specificity": 1.0,
        "auroc": None,
        "average_precision": None,
    }
    assert found["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["macro_auroc"] == pytest.approx(0.75)


def test_a_class_never_predicted_has_no_precision_but_recall_and_f1_of_zero():
    labels = np.array([0, 1, 1])
    found = classification_metrics(labels, one_hot(np.array([1, 1, 1]), 2), ["a", "b"], (0,), 0.5)
    row = found["per_class"]["a"]
    assert (row["precision"], row["recall"], row["f1"]) == (None, 0.0, 0.0)
    assert found["mcc"] is None


def test_scans_of_one_class_only_leave_ranking_metrics_undefined():
    labels = np.zeros(3, dtype=np.int64)
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    found = classification_metrics(labels, probs, ["tumor", "no_tumor"], (0,), 0.5)
    assert found["macro_auroc"] is None
    assert found["mcc"] is None
    assert found["per_class"]["tumor"]["specificity"] is None
    binary = found["binary"]
    assert binary["sensitivity"] == pytest.approx(2 / 3)
    for name in ("specificity", "balanced_accuracy", "auroc", "average_precision"):
        assert binary[name] is None, name
    assert binary["npv"] == 0.0


def test_classes_that_are_all_tumors_can_still_be_measured():
    labels, probs = random_predictions(0, k=3)
    found = classification_metrics(labels, probs, NAMES[:3], (0, 1, 2), 0.5)
    assert found["macro_auroc"] is not None
    assert found["binary"]["specificity"] is None


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(2, 4), st.integers(0, 10_000))
def test_result_is_strict_json_for_any_tiny_set(n, k, seed):
    rng = np.random.default_rng(seed)
    labels, probs = rng.integers(0, k, n), one_hot(rng.integers(0, k, n), k)
    found = classification_metrics(labels, probs, NAMES[:k], (0,), 0.5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_float32_and_float16_probabilities_are_accepted():
    labels, probs = random_predictions(1)
    exact = classification_metrics(labels, probs, NAMES, POSITIVE, 0.7)["macro_auroc"]
    for dtype in (np.float32, np.float16):
        found = classification_metrics(labels, probs.astype(dtype), NAMES, POSITIVE, 0.7)
        assert found["macro_auroc"] == pytest.approx(exact, abs=1e-3)


GOOD_LABELS = np.array([0, 1])
GOOD_PROBS = np.array([[0.75, 0.25], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probs": np.array([[0.75, 0.25], [np.nan, 0.5]])}, r"nan in row 1, column 0"),
        ({"probs": np.array([[0.75, 0.25], [0.5, np.inf]])}, r"inf in row 1, column 1"),
        ({"probs": np.array([[0.75, 0.25], [0.5, 0.498]])}, r"row 1 sums to 0.998"),
        ({"probs": np.array([[1.5, -0.5], [0.5, 0.5]])}, r"-0.5 in row 0, column 1"),
        ({"probs": np.zeros((2, 1))}, r"shape \(2, 1\)"),
        ({"probs": np.zeros((0, 2))}, r"probs is empty"),
        ({"labels": np.array([0, 2])}, r"label 2 in row 1 is outside 0\.\.1"),
        ({"labels": np.array([-1, 0])}, r"label -1 in row 0"),
        ({"labels": np.array([0, 1, 1])}, r"labels has 3 rows and probs has 2"),
        ({"labels": np.array([0.0, 1.0])}, r"dtype float64"),
        ({"labels": np.array(["a", "b"])}, r"not names"),
        ({"labels": np.array(1)}, r"labels has shape \(\)"),
        ({"class_names": ["a"]}, r"do not name 2 columns"),
        ({"class_names": ["a", "a"]}, r"one by one"),
        ({"positive": (2,)}, r"positive classes \(2,\)"),
        ({"positive": (0, 0)}, r"not distinct"),
        ({"threshold": float("nan")}, r"threshold nan"),
    ],
)
def test_inputs_that_cannot_be_measured_are_refused_with_the_value(changes, message):
    good = {
        "labels": GOOD_LABELS,
        "probs": GOOD_PROBS,
        "class_names": ["a", "b"],
        "positive": (0,),
        "threshold": 0.5,
    }
    classification_metrics(**good)
    with pytest.raises(MetricsError, match=message) as caught:
        classification_metrics(**{**good, **changes})
    assert isinstance(caught.value, BrainTumorError)
    assert "\n" not in str(caught.value)


def test_a_row_sum_within_a_thousandth_is_accepted():
    probs = np.array([[0.75, 0.2505], [0.5, 0.4995]])
    assert classification_metrics(GOOD_LABELS, probs, ["a", "b"], (0,), 0.5)["n"] == 2


def test_binary_view_sums_the_positive_columns():
    labels, probs = random_predictions(2)
    truth, score = binary_view(labels, probs, (3, 1))
    np.testing.assert_array_equal(truth, (labels == 1) | (labels == 3))
    np.testing.assert_allclose(score, probs[:, 1] + probs[:, 3])


def test_hand_worked_curves():
    truth, score = np.array([1, 0, 1, 0]), np.array([0.9, 0.7, 0.6, 0.1])
    assert roc_curve_points(truth, score) == {
        "fpr": [0, 0, 0.5, 0.5, 1],
        "tpr": [0, 0.5, 0.5, 1, 1],
        "threshold": [None, 0.9, 0.7, 0.6, 0.1],
    }
    found = pr_curve_points(truth, score)
    assert found["recall"] == [1, 1, 0.5, 0.5, 0]
    assert found["precision"] == pytest.approx([0.5, 2 / 3, 0.5, 1, 1])
    assert found["threshold"] == [0.1, 0.6, 0.7, 0.9, None]


def test_curves_of_one_kind_are_empty():
    truth, score = np.ones(3), np.array([0.1, 0.2, 0.3])
    assert roc_curve_points(truth, score) == {"fpr": [], "tpr": [], "threshold": []}
    assert pr_curve_points(truth, score) == {"recall": [], "precision": [], "threshold": []}


def noisy_scores(n):
    rng = np.random.default_rng(0)
    score = rng.random(n)
    return rng.random(n) < score, score


def distance_to_polyline(points, corners):
    start, along = corners[:-1], np.diff(corners, axis=0)
    offset = points[:, None] - start
    share = np.clip((offset * along).sum(-1) / (along**2).sum(-1), 0, 1)
    return np.linalg.norm(offset - share[..., None] * along, axis=-1).min(axis=1)


def test_a_thinned_roc_curve_keeps_its_ends_its_corners_and_its_area():
    truth, score = noisy_scores(20_000)
    found = roc_curve_points(truth, score)
    assert len(found["fpr"]) == 200
    assert (found["fpr"][0], found["tpr"][0]) == (0, 0)
    assert (found["fpr"][-1], found["tpr"][-1]) == (1, 1)
    fpr, tpr, _ = sk.roc_curve(truth, score)
    kept = np.column_stack([found["fpr"], found["tpr"]])
    assert distance_to_polyline(np.column_stack([fpr, tpr]), kept).max() < 0.003
    assert sk.auc(found["fpr"], found["tpr"]) == pytest.approx(
        sk.roc_auc_score(truth, score), abs=1e-3
    )


def test_thinned_points_are_points_of_the_full_curve():
    truth, score = noisy_scores(5_000)
    found = roc_curve_points(truth, score, max_points=50)
    for fpr, tpr, threshold in list(zip(*found.values(), strict=True))[1:]:
        counted = binary_metrics(truth, score, threshold)
        assert (counted["sensitivity"], 1 - counted["specificity"]) == pytest.approx((tpr, fpr))


def test_a_thinned_pr_curve_keeps_its_ends_and_is_strict_json():
    truth, score = noisy_scores(20_000)
    found = pr_curve_points(truth, score)
    assert len(found["recall"]) == 200
    assert (found["recall"][0], found["recall"][-1]) == (1, 0)
    json.dumps(found, allow_nan=False)


def test_a_curve_needs_room_for_its_ends():
    with pytest.raises(MetricsError, match="max_points is 1"):
        roc_curve_points(np.array([0, 1]), np.array([0.1, 0.2]), max_points=1)
