"""Thresholds: the best by the rule, midway between scans, the same as trying every one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.classification import binary_metrics
from braintumor_ray.metrics.thresholds import (
    OperatingPoint,
    choose_threshold,
    threshold_by,
    threshold_sweep,
)

RULES = ("f1", "youden", "sensitivity_at_specificity", "specificity_at_sensitivity")


def noisy(seed, n=200, digits=None):
    rng = np.random.default_rng(seed)
    score = rng.random(n)
    truth = rng.random(n) < score
    return truth, score if digits is None else np.round(score, digits)


def both_kinds():
    rows = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=25)
    return rows.filter(lambda r: len({t for t, _ in r}) == 2)


def test_hand_worked_sweep():
    sweep = threshold_sweep(np.array([1, 0, 1, 0]), np.array([0.9, 0.7, 0.6, 0.2]))
    np.testing.assert_allclose(sweep["threshold"], [0.8, 0.65, 0.4, 0.1])
    np.testing.assert_array_equal(sweep["tp"], [1, 1, 2, 2])
    np.testing.assert_array_equal(sweep["fp"], [0, 1, 1, 2])
    np.testing.assert_array_equal(sweep["fn"], [1, 1, 0, 0])
    np.testing.assert_array_equal(sweep["tn"], [2, 1, 1, 0])
    np.testing.assert_allclose(sweep["f1"], [2 / 3, 2 / 4, 4 / 5, 4 / 6])
    np.testing.assert_allclose(sweep["youden"], [0.5, 0, 0.5, 0])


@settings(max_examples=100, deadline=None)
@given(both_kinds())
def test_every_candidate_has_the_outcomes_that_its_threshold_gives(rows):
    truth, score = np.array([t for t, _ in rows]), np.array([s / 6 for _, s in rows])
    sweep = threshold_sweep(truth, score)
    assert len(sweep["threshold"]) == len(np.unique(score))
    for i, threshold in enumerate(sweep["threshold"]):
        counted = binary_metrics(truth, score, threshold)
        for name in ("tp", "fp", "tn", "fn", "sensitivity", "specificity", "precision", "f1"):
            assert sweep[name][i] == pytest.approx(counted[name]), name


@settings(max_examples=100, deadline=None)
@given(both_kinds(), st.sampled_from(RULES), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_no_other_threshold_is_better(rows, rule, floor):
    truth, score = np.array([t for t, _ in rows]), np.array([s / 6 for _, s in rows])

    def merit(p):
        if rule in ("f1", "youden"):
            return (p["f1"] if rule == "f1" else p["sensitivity"] + p["specificity"] - 1,)
        first, second = p["sensitivity"], p["specificity"]
        if rule == "specificity_at_sensitivity":
            first, second = second, first
        return (first, second) if second >= floor else (-1.0, -1.0)

    merits = [merit(binary_metrics(truth, score, t)) for t in np.unique(score)]
    if max(merits)[0] < -0.99 and rule not in ("f1", "youden"):
        with pytest.raises(MetricsError, match="no threshold reaches"):
            choose_threshold(truth, score, rule, floor)
        return
    point = choose_threshold(truth, score, rule, floor)
    chosen = merit(binary_metrics(truth, score, point.threshold))
    assert chosen == pytest.approx(max(merits))


@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize("seed", range(5))
def test_youden_and_f1_equal_the_best_points_of_scikit_learns_curves(seed, digits):
    truth, score = noisy(seed, digits=digits)
    fpr, tpr, _ = sk.roc_curve(truth, score, drop_intermediate=False)
    assert choose_threshold(truth, score, "youden").youden == pytest.approx((tpr - fpr).max())
    best = max(sk.f1_score(truth, score >= t) for t in np.unique(score))
    assert choose_threshold(truth, score, "f1").f1 == pytest.approx(best)


@pytest.mark.parametrize("rule", RULES)
def test_the_point_reports_what_its_threshold_achieves(rule):
    truth, score = noisy(3)
    point = choose_threshold(truth, score, rule, 0.8)
    counted = binary_metrics(truth, score, point.threshold)
    for name in ("sensitivity", "specificity", "precision", "f1"):
        assert getattr(point, name) == pytest.approx(counted[name]), name
    assert point.youden == pytest.approx(point.sensitivity + point.specificity - 1)


@pytest.mark.parametrize("rule", RULES)
def test_separable_scores_are_cut_in_the_middle_of_the_gap(rule):
    truth, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert choose_threshold(truth, score, rule, 1.0) == OperatingPoint(0.5, 1, 1, 1, 1, 1)


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_sits_on_a_scan(seed):
    truth, score = noisy(seed, n=40, digits=1)
    score = np.maximum(score, 0.1)
    for rule in RULES:
        assert choose_threshold(truth, score, rule, 0.3).threshold not in score


def test_neighboring_ties_take_the_middle_candidate():
    # Each of 0.7, 0.5 and 0.3 holds one positive and one negative: Youden is 0.2 from 0.9 down.
    score = np.array([0.9, 0.7, 0.7, 0.5, 0.5, 0.3, 0.3, 0.1, 0.1, 0.05])
    truth = np.array([1, 1, 0, 1, 0, 1, 0, 1, 0, 0])
    sweep = threshold_sweep(truth, score)
    np.testing.assert_allclose(sweep["youden"], [0.2, 0.2, 0.2, 0.2, 0.2, 0], atol=1e-12)
    # They tie on (0.05, 0.9]; the middle, 0.475, lies between the scans at 0.3 and 0.5.
    assert choose_threshold(truth, score, "youden").threshold == pytest.approx(0.4)


def test_ties_that_lie_apart_take_the_wider_peak_not_the_valley_between():
    truth, score = np.array([1, 0, 1, 0]), np.array([0.9, 0.7, 0.6, 0.1])
    point = choose_threshold(truth, score, "youden")
    assert point.threshold == pytest.approx(0.35)
    assert point.youden == 0.5


def test_among_equal_sensitivities_the_highest_specificity_wins():
    truth = np.array([1, 1, 0, 0, 0, 0])
    score = np.array([0.9, 0.8, 0.5, 0.4, 0.3, 0.2])
    point = choose_threshold(truth, score, "sensitivity_at_specificity", 0.5)
    assert (point.threshold, point.specificity) == (pytest.approx(0.65), 1.0)


def test_hand_worked_floor():
    truth = np.array([1, 1, 1, 0, 0, 0, 0])
    score = np.array([0.9, 0.6, 0.3, 0.8, 0.4, 0.2, 0.1])
    # From the top: sens 1/3, spec 1; 1/3, 3/4; 2/3, 3/4; 2/3, 1/2; 1, 1/2.
    point = choose_threshold(truth, score, "sensitivity_at_specificity", 0.75)
    assert (point.sensitivity, point.specificity) == pytest.approx((2 / 3, 3 / 4))
    assert point.threshold == pytest.approx(0.5)
    point = choose_threshold(truth, score, "specificity_at_sensitivity", 0.9)
    assert (point.sensitivity, point.specificity) == pytest.approx((1, 1 / 2))
    assert point.threshold == pytest.approx(0.25)


def test_a_floor_met_exactly_counts():
    truth = np.array([1] * 1 + [0] * 10)
    score = np.linspace(1, 0, 11)
    score[[0, 1]] = score[[1, 0]]
    point = choose_threshold(truth, score, "sensitivity_at_specificity", 0.9)
    assert (point.sensitivity, point.specificity) == (1.0, pytest.approx(0.9))


def test_neighboring_floats_keep_the_lower_scan_negative():
    low = 0.5
    high = float(np.nextafter(low, 1))
    point = choose_threshold(np.array([0, 1]), np.array([low, high]))
    assert low < point.threshold <= high
    assert point.specificity == 1.0


def test_equal_scores_leave_one_candidate_that_calls_everything_positive():
    point = choose_threshold(np.array([0, 1]), np.array([0.5, 0.5]))
    assert (point.threshold, point.sensitivity, point.specificity) == (0.25, 1, 0)


def test_scores_of_zero_and_below_can_still_all_be_positive():
    assert choose_threshold(np.array([1, 0]), np.array([0.0, 0.0])).threshold == 0.0
    point = choose_threshold(np.array([1, 0]), np.array([-2.0, -3.0]))
    assert (point.threshold, point.f1) == (-2.5, 1.0)


@pytest.mark.parametrize(("kind", "name"), [(1, "positive"), (0, "negative")])
def test_scans_of_one_kind_are_refused(kind, name):
    with pytest.raises(MetricsError, match=f"all 3 scans are {name}.*validation split"):
        choose_threshold(np.full(3, kind), np.array([0.1, 0.2, 0.3]))


@pytest.mark.parametrize(
    ("truth", "score", "options", "message"),
    [
        ([0, 1], [0.1, np.nan], {}, "score holds nan in row 1"),
        ([0, 1], [0.1], {}, "truth has 2 rows and score has 1"),
        ([], [], {}, "truth is empty"),
        ([0, 2], [0.1, 0.2], {}, "truth holds 2 in row 1"),
        ([0, 1], [0.1, 0.2], {"by": "best"}, "rule 'best' is unknown.*youden"),
        ([0, 1], [0.1, 0.2], {"by": "sensitivity_at_specificity", "floor": 90}, "floor 90"),
        ([1, 0], [0.1, 0.2], {"by": "sensitivity_at_specificity"}, r"specificity 0.9 .*best: 0\)"),
    ],
)
def test_inputs_that_give_no_threshold_are_refused_with_the_value(truth, score, options, message):
    with pytest.raises(MetricsError, match=message):
        choose_threshold(np.array(truth), np.array(score), **options)


class TestByARecipesRule:
    TRUTH = np.array([0, 0, 1, 1, 1], bool)
    SCORE = np.array([0.1, 0.8, 0.6, 0.9, 0.95])

    def test_a_stated_threshold_is_taken_and_nothing_chosen(self):
        assert threshold_by("0.5", self.TRUTH, self.SCORE) == 0.5
        assert threshold_by(".25", ~self.TRUTH, self.SCORE) == 0.25

    @pytest.mark.parametrize("rule", ["f1", "youden"])
    def test_a_rule_chooses(self, rule):
        chosen = choose_threshold(self.TRUTH, self.SCORE, rule).threshold
        assert threshold_by(rule, self.TRUTH, self.SCORE) == chosen

    def test_a_floor_is_met(self):
        assert threshold_by("sensitivity >= 1.0", self.TRUTH, self.SCORE) <= 0.6
        assert threshold_by("sensitivity >= 0.6", self.TRUTH, self.SCORE) > 0.8

    @pytest.mark.parametrize("text", ["1.5", "f2", "sensitivity >= 2", ""])
    def test_others_are_refused(self, text):
        with pytest.raises(MetricsError, match="threshold_by"):
            threshold_by(text, self.TRUTH, self.SCORE)
