"""Calibration: temperature found again, ECE worked by hand and equal to torchmetrics."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.calibration import (
    binary_ece,
    binary_reliability_bins,
    brier,
    calibration_metrics,
    ece,
    fit_temperature,
    log_softmax,
    nll,
    reliability_bins,
    softmax,
)


def calibrated_logits(seed, n=20_000, k=4):
    """Logits whose softmax is the true distribution of the labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, k))
    gumbel = rng.gumbel(size=(n, k))
    return logits, (logits + gumbel).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0, 2.5, 10.0])
def test_a_known_temperature_is_found_again(temperature):
    logits, labels = calibrated_logits(0)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


def test_no_temperature_nearby_has_a_lower_nll():
    logits, labels = calibrated_logits(1, n=500)
    best = fit_temperature(logits * 3, labels)
    reached = nll(labels, softmax(logits * 3, best))
    for factor in (0.5, 0.97, 1.03, 2):
        assert reached < nll(labels, softmax(logits * 3, best * factor))


def test_temperature_leaves_the_predicted_class_and_mends_the_ece():
    logits, labels = calibrated_logits(2)
    before, after = softmax(logits * 4), softmax(logits * 4, fit_temperature(logits * 4, labels))
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
    assert ece(labels, before) > 0.1
    assert ece(labels, after) < 0.02


def test_temperature_stays_in_its_bounds_where_the_data_do_not_determine_it():
    always_right = np.array([[9.0, 0.0], [0.0, 9.0]])
    assert 0.05 <= fit_temperature(always_right, np.array([0, 1])) < 0.3
    assert fit_temperature(always_right, np.array([1, 0])) == pytest.approx(20, rel=1e-3)


def test_softmax_of_huge_logits_is_finite():
    logits = np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32)
    np.testing.assert_array_equal(softmax(logits), [[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(log_softmax(logits)[:, 1], [-1e4, -np.log(2)])


def test_softmax_equals_torch_after_division_by_temperature():
    logits = np.random.default_rng(0).normal(0, 5, (50, 4))
    expected = torch.softmax(torch.from_numpy(logits) / 1.7, dim=1).numpy()
    np.testing.assert_allclose(softmax(logits, 1.7), expected, rtol=1e-12)
    np.testing.assert_allclose(log_softmax(logits, 1.7), np.log(expected), rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(MetricsError, match="temperature"):
        softmax(np.zeros((1, 2)), temperature)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, np.nan]], [0], "logits holds nan in row 0, column 1"),
        ([[0.0, 1.0]], [2], "label 2"),
        ([[0.0, 1.0]], [0, 1], "labels has 2 rows and logits has 1"),
        (np.zeros((0, 2)), [], "logits is empty"),
    ],
)
def test_logits_that_cannot_be_calibrated_are_refused(logits, labels, message):
    with pytest.raises(MetricsError, match=message):
        fit_temperature(np.array(logits), np.array(labels))


FOUR_LABELS = np.array([0, 1, 0, 1])
FOUR_PROBS = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])


def test_hand_worked_ece_in_two_bins():
    # Confidences 0.9, 0.8, 0.6, 0.7 all lie in (0.5, 1]; mean 0.75, three of four right.
    assert ece(FOUR_LABELS, FOUR_PROBS, n_bins=2) == pytest.approx(0, abs=1e-12)


def test_hand_worked_ece_in_ten_bins():
    # Bins end at 0.1 steps, closed above: each scan has its own; gaps 0.1, 0.8, 0.4, 0.3.
    assert ece(FOUR_LABELS, FOUR_PROBS, n_bins=10) == pytest.approx((0.1 + 0.8 + 0.4 + 0.3) / 4)


def test_hand_worked_reliability_bins():
    labels = np.array([0, 1, 0])
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    found = reliability_bins(labels, probs, n_bins=4)
    assert found["lower"] == [0, 0.25, 0.5, 0.75]
    assert found["upper"] == [0.25, 0.5, 0.75, 1]
    assert found["count"] == [0, 0, 1, 2]
    assert found["confidence"] == [None, None, 0.6, pytest.approx(0.85)]
    assert found["accuracy"] == [None, None, 1.0, 0.5]
    assert ece(labels, probs, n_bins=4) == pytest.approx((0.4 + 2 * 0.35) / 3)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    found = binary_reliability_bins(np.array([1, 0, 1]), np.array([0.0, 0.5, 1.0]), n_bins=2)
    assert found["count"] == [2, 1]


def test_a_top_probability_rounded_above_one_is_counted():
    probs = np.array([[1.0005, 0.0], [0.5, 0.5]])
    assert sum(reliability_bins(np.array([0, 1]), probs)["count"]) == 2


@pytest.mark.parametrize("seed", range(4))
def test_ece_equals_torchmetrics_with_fifteen_bins(seed, torchmetrics_functional):
    logits, labels = calibrated_logits(seed, n=700)
    probs = softmax(logits * 2)
    expected = torchmetrics_functional.multiclass_calibration_error(
        torch.from_numpy(probs), torch.from_numpy(labels), num_classes=4, n_bins=15, norm="l1"
    )
    assert ece(labels, probs) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_binary_ece_equals_torchmetrics(seed, torchmetrics_functional):
    rng = np.random.default_rng(seed)
    score = rng.random(500)
    truth = rng.random(500) < score**2
    expected = torchmetrics_functional.binary_calibration_error(
        torch.from_numpy(score), torch.from_numpy(truth.astype(np.int64)), n_bins=15
    )
    assert binary_ece(truth, score) == pytest.approx(float(expected), abs=1e-6)


def test_hand_worked_binary_ece_is_of_the_positive_share_not_of_correctness():
    # One scan at 0.1 that is negative: a gap of 0.1, though the decision is right.
    assert binary_ece(np.array([0, 1]), np.array([0.1, 1.0])) == pytest.approx(0.05)


def test_hand_worked_nll_and_brier():
    labels, probs = np.array([0, 1]), np.array([[0.5, 0.5], [0.75, 0.25]])
    assert nll(labels, probs) == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert brier(labels, probs) == pytest.approx((0.5 + 2 * 0.75**2) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_nll_and_brier_equal_scikit_learn(seed):
    logits, labels = calibrated_logits(seed, n=300)
    probs = softmax(logits)
    assert nll(labels, probs) == pytest.approx(log_loss(labels, probs))
    per_class = [brier_score_loss(labels == c, probs[:, c]) for c in range(4)]
    assert brier(labels, probs) == pytest.approx(sum(per_class))


def test_one_confident_mistake_leaves_the_nll_finite():
    value = nll(np.array([1, 0]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert value == pytest.approx(708.4 / 2, rel=1e-3)


def test_summary_is_strict_json_and_agrees_with_its_parts():
    logits, labels = calibrated_logits(0, n=200)
    probs = softmax(logits)
    found = calibration_metrics(labels, probs, (0, 1, 2))
    json.dumps(found, allow_nan=False)
    assert found["ece"] == ece(labels, probs)
    assert found["binary_ece"] == binary_ece(labels < 3, probs[:, :3].sum(axis=1))
    assert sum(found["reliability"]["count"]) == 200


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary_ece(np.array([1]), np.array([1.5])), "score 1.5 in row 0"),
        (lambda: ece(FOUR_LABELS, FOUR_PROBS, 0), "n_bins is 0"),
        (lambda: ece(FOUR_LABELS, FOUR_PROBS * 2), "sums to 2"),
        (lambda: brier(FOUR_LABELS, np.full((4, 2), np.nan)), "nan in row 0.*8 such values"),
    ],
)
def test_what_is_not_a_probability_is_refused(call, message):
    with pytest.raises(MetricsError, match=message):
        call()
