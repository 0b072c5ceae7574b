"""Prediction sets: the coverage that is stated, per class, also of few and dependent scans."""

import numpy as np
import pytest

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.conformal import (
    SetRule,
    fewest_groups,
    fit_sets,
    in_set,
    named_sets,
)
from braintumor_ray.metrics.coverage import set_metrics

NAMES = ("glioma", "meningioma", "none")


def draw(rng, n, sharpness=(3.0, 1.5, 4.0), shares=(0.4, 0.45, 0.15)):
    """Labels and probabilities of a network that is better at some classes."""
    labels = rng.choice(3, n, p=shares)
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), labels] += np.array(sharpness)[labels]
    return labels, softmax(logits)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def covered(labels, probs, rule):
    return in_set(probs, rule.thresholds)[np.arange(len(labels)), labels]


def test_each_class_of_new_scans_is_covered_as_stated():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        rule = fit_sets(*draw(rng, 214))
        labels, probs = draw(rng, 2000)
        hit = covered(labels, probs, rule)
        found.append([hit.mean(), *(hit[labels == c].mean() for c in range(3))])
    overall, *classes = np.mean(found, axis=0)
    assert 0.9 <= overall < 0.925
    assert min(classes) > 0.895
    assert max(classes) < 0.95


def test_copies_of_a_scan_are_no_further_evidence():
    """Calibrated as single scans, copies give thresholds that hold for fewer scans than stated."""
    rng = np.random.default_rng(1)
    as_groups, as_scans = [], []
    for _ in range(150):
        labels, probs = draw(rng, 60, shares=(0.5, 0.5, 0.0))
        groups = np.repeat(np.arange(60), 4)
        copies = np.repeat(labels, 4), np.repeat(probs, 4, axis=0)
        new = draw(rng, 500, shares=(0.5, 0.5, 0.0))
        as_groups.append(covered(*new, fit_sets(*copies, groups=groups)).mean())
        as_scans.append(covered(*new, fit_sets(*copies)).mean())
    assert np.mean(as_groups) >= 0.9 > np.mean(as_scans)


def test_thresholds_are_those_of_mapie_where_calibration_is_large():
    pytest.importorskip("mapie", reason="a peer for this test only")
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        """Probabilities that are handed through as features."""

        classes_ = np.arange(3)

        def fit(self, x, y):
            return self

        def __sklearn_is_fitted__(self):
            return True

        def predict_proba(self, x):
            return np.asarray(x, np.float64) / np.asarray(x, np.float64).sum(1, keepdims=True)

        def predict(self, x):
            return self.predict_proba(x).argmax(axis=1)

    rng = np.random.default_rng(2)
    labels, probs = draw(rng, 3000)
    _, new = draw(rng, 500)
    ours = in_set(new, fit_sets(labels, probs).thresholds)
    for index in range(3):
        own = labels == index
        peer = SplitConformalClassifier(Given(), confidence_level=0.9, conformity_score="lac")
        peer.conformalize(probs[own].astype(np.float64), labels[own])
        theirs = peer.predict_set(new.astype(np.float64))[1][:, index, 0]
        assert (ours[:, index] == theirs).all()
        assert theirs.any()
        assert not theirs.all()


def test_a_class_with_too_few_scans_is_in_every_set_and_is_warned_of():
    labels = np.repeat([0, 1, 2], [40, 40, fewest_groups(0.9) - 1])
    probs = np.full((len(labels), 3), 0.05, np.float32)
    probs[np.arange(len(labels)), labels] = 0.9
    rule = fit_sets(labels, probs)
    assert rule.thresholds[2] == 0 < rule.thresholds[0]
    (warning,) = rule.warnings(NAMES)
    assert "'none' has 11 independent validation scans" in warning
    assert "needs 12" in warning
    assert named_sets(np.array([[1, 0, 0]], np.float32), rule.thresholds, NAMES) == [
        ["glioma", "none"]
    ]
    assert rule.describe(NAMES)[2]["expected"] == 1


def test_sure_scans_of_calibration_stay_inside_in_float32():
    labels = np.repeat([0, 1, 2], 20)
    logits = np.random.default_rng(3).normal(0, 1, (60, 3))
    logits[np.arange(60), labels] += 30  # probabilities of 1, as near as float64 can tell
    exact = np.exp(logits - logits.max(1, keepdims=True))
    exact /= exact.sum(1, keepdims=True)
    rule = fit_sets(labels, exact)
    assert covered(labels, exact.astype(np.float32), rule).all()


def test_what_is_expected_follows_from_the_number_of_groups():
    rule = fit_sets(*draw(np.random.default_rng(4), 1000))
    for row in rule.describe(NAMES):
        assert 0.9 <= row["expected"] < 0.92
        assert row["low"] < 0.9 < row["expected"] < row["high"]
    small = SetRule(0.9, (0.5, 0.5, 0.5), (20, 200, 2000)).describe(NAMES)
    widths = [row["high"] - row["low"] for row in small]
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_metrics_count_what_the_sets_hold():
    probs = np.array(
        [[0.8, 0.1, 0.1], [0.45, 0.45, 0.1], [0.34, 0.33, 0.33], [0.1, 0.8, 0.1]], np.float32
    )
    labels = np.array([0, 1, 2, 2])
    rule = SetRule(0.9, (0.4, 0.4, 0.4), (30, 30, 30))
    found = set_metrics(labels, probs, rule, NAMES, np.arange(4), seed=0, n_boot=50)
    shares = {k: found[k]["estimate"] for k in ("coverage", "empty", "single", "several")}
    assert shares == {"coverage": 0.5, "empty": 0.25, "single": 0.5, "several": 0.25}
    assert found["single_right"]["estimate"] == 0.5
    assert found["mean_size"] == 1
    assert [found["per_class"][n]["coverage"]["estimate"] for n in NAMES] == [1, 1, 0]
    assert found["coverage"]["low"] <= 0.5 <= found["coverage"]["high"]


def test_a_coverage_outside_0_and_1_is_refused():
    with pytest.raises(MetricsError, match=r"coverage 90 is not in \(0, 1\)"):
        fit_sets(*draw(np.random.default_rng(0), 50), coverage=90)
