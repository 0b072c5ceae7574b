"""Words for decisions, and when a network counts as guessing."""

import numpy as np
import pytest

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.classification import classification_metrics
from braintumor_ray.metrics.thresholds import parse_rule
from braintumor_ray.metrics.tuning import tune_decision
from braintumor_ray.metrics.verdicts import chance_note, disagreement, found_and_missed


def test_zero_missed_is_said():
    binary = {"tp": 12, "fn": 0, "tn": 7, "fp": 1}
    assert found_and_missed(binary) == (
        "0 of 12 scans with a tumor missed, 1 of 8 without one called tumor"
    )
    assert (
        found_and_missed({"tp": 0, "fn": 0, "tn": 7, "fp": 0}) == "0 of 7 without one called tumor"
    )


def test_guessing_is_noticed_and_learning_is_not():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 50)
    noticed = 0
    for _ in range(200):
        table = np.zeros((4, 4), int)
        np.add.at(table, (truth, rng.integers(4, size=200)), 1)
        noticed += chance_note(table.tolist()) is not None
    assert noticed > 180
    assert chance_note([[0, 0, 10, 0]] * 4) is not None  # always the same class
    assert chance_note((30 * np.eye(4) + 10).astype(int).tolist()) is None
    assert chance_note([[3, 1], [1, 3]]) is not None  # eight scans show nothing
    assert chance_note([[5, 0], [0, 0]]) is None  # one class alone cannot tell


def test_likeliest_class_and_decision_may_differ_and_why_is_said():
    assert disagreement(True, True) == disagreement(False, False) == ""
    assert "below the threshold" in disagreement(True, False)
    assert "reach the threshold" in disagreement(False, True)


def test_a_floor_of_sensitivity_chooses_the_most_specific_threshold():
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=400)
    logits = rng.normal(size=(400, 2)) + 1.2 * np.eye(2)[labels]
    tuned = {
        floor: tune_decision(logits, labels, ("no", "yes"), [1], f"sensitivity >= {floor}")
        for floor in (0.8, 0.95)
    }
    for floor, found in tuned.items():
        assert found.metrics["binary"]["sensitivity"] >= floor
        higher = classification_metrics(
            labels, np.stack([1 - _score(logits, found), _score(logits, found)], axis=1),
            ("no", "yes"), [1], found.threshold + 0.02,
        )  # fmt: skip
        assert higher["binary"]["sensitivity"] < floor + 0.02
    assert tuned[0.95].threshold < tuned[0.8].threshold


def _score(logits, tuned):
    scaled = np.exp(logits / tuned.temperature)
    return scaled[:, 1] / scaled.sum(axis=1)


@pytest.mark.parametrize("text", ["sensitivity > 0.9", "sensitivity >= 1.5", "accuracy", ""])
def test_an_unknown_rule_is_refused(text):
    with pytest.raises(MetricsError, match=r"sensitivity >= 0\.95"):
        parse_rule(text)


def test_metrics_of_another_rule_are_of_that_rule_throughout():
    labels, probs = np.array([0, 0, 1, 1]), np.array([[0.6, 0.4]] * 4)
    called = np.array([1, 1, 1, 1])
    found = classification_metrics(labels, probs, ("a", "b"), [1], 0.3, called)
    assert found["confusion_matrix"] == [[0, 2], [0, 2]]
    assert found["accuracy"] == found["balanced_accuracy"] == found["binary"]["accuracy"] == 0.5
