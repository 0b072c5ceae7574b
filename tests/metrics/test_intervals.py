"""Bootstrap intervals: groups move together, and both ways of computing them agree."""

import dataclasses
import time

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.classification import auroc
from braintumor_ray.metrics.intervals import (
    bootstrap_auroc,
    bootstrap_interval,
    bootstrap_table,
    metric_intervals,
    table_accuracy,
    table_balanced_accuracy,
    table_macro_f1,
    table_sensitivity,
    table_specificity,
)


def predictions(seed, n=200, k=4):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(k), n)
    labels = np.array([rng.choice(k, p=row) for row in probs])
    return labels, probs, rng.integers(0, n // 3, n)


def accuracy(labels, predicted):
    return float(np.mean(labels == predicted))


def width(interval):
    return interval.high - interval.low


def test_rows_copied_inside_their_group_leave_the_interval_as_it_is():
    labels, probs, groups = predictions(0)
    predicted = probs.argmax(axis=1)
    once = bootstrap_interval(accuracy, groups, labels, predicted, seed=1)
    twice = bootstrap_interval(
        accuracy, np.tile(groups, 2), np.tile(labels, 2), np.tile(predicted, 2), seed=1
    )
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert twice.n_groups == once.n_groups


def test_ungrouped_copies_would_feign_certainty():
    labels, probs, _ = predictions(0)
    predicted, scans = probs.argmax(axis=1), np.arange(200)
    grouped = bootstrap_interval(
        accuracy, np.tile(scans, 4), np.tile(labels, 4), np.tile(predicted, 4), seed=1
    )
    naive = bootstrap_interval(
        accuracy, np.arange(800), np.tile(labels, 4), np.tile(predicted, 4), seed=1
    )
    assert width(grouped) / width(naive) == pytest.approx(2, rel=0.15)


def test_interval_of_independent_scans_matches_the_binomial_quantiles():
    correct = np.arange(400) < 320
    found = bootstrap_interval(
        lambda c: float(c.mean()), np.arange(400), correct, seed=0, n_boot=4000
    )
    assert found.estimate == 0.8
    low, high = binom.ppf([0.025, 0.975], 400, 0.8) / 400
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)


def test_level_widens_the_interval():
    labels, probs, groups = predictions(1)
    data = (groups, labels, probs.argmax(axis=1))
    narrow = bootstrap_interval(accuracy, *data, seed=0, level=0.5)
    wide = bootstrap_interval(accuracy, *data, seed=0, level=0.99)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_each_resample_holds_whole_groups_with_all_arrays_in_step():
    groups = np.array(["b", "a", "c", "a", "b", "b"])
    rows = np.arange(6)
    whole = {"a": [1, 3], "b": [0, 4, 5], "c": [2]}
    seen = []

    def statistic(index, same):
        np.testing.assert_array_equal(index, same)
        seen.append(np.sort(index).tolist())
        return 0.0

    bootstrap_interval(statistic, groups, rows, rows.copy(), seed=0, n_boot=50)
    assert len(seen) == 51
    for index in seen[:-1]:
        counts = {name: [index.count(r) for r in members] for name, members in whole.items()}
        assert all(len(set(times)) == 1 for times in counts.values())
        assert sum(times[0] for times in counts.values()) == 3
    assert seen[-1] == rows.tolist()


def test_same_seed_same_interval_other_seed_another():
    labels, probs, groups = predictions(2)
    data = (groups, labels, probs.argmax(axis=1))
    first = bootstrap_interval(accuracy, *data, seed=3)
    assert first == bootstrap_interval(accuracy, *data, seed=3)
    assert first != bootstrap_interval(accuracy, *data, seed=4)


def test_names_of_groups_do_not_matter():
    labels, probs, groups = predictions(2)
    data = (labels, probs.argmax(axis=1))
    named = np.array([f"patient-{g:04d}" for g in groups], dtype=object)
    assert bootstrap_interval(accuracy, groups, *data, seed=0) == bootstrap_interval(
        accuracy, named, *data, seed=0
    )


def test_resamples_that_leave_the_statistic_undefined_are_dropped_and_counted():
    truth = np.array([1, 0, 0, 0])
    score = np.array([0.9, 0.1, 0.2, 0.95])
    found = bootstrap_interval(auroc, np.arange(4), truth, score, seed=0, n_boot=2000)
    # No positive: (3/4)^4; no negative: (1/4)^4.
    assert found.n_undefined / 2000 == pytest.approx(0.75**4 + 0.25**4, abs=0.03)
    assert found.estimate == pytest.approx(2 / 3)
    assert 0 <= found.low <= found.high <= 1


@pytest.mark.parametrize("undefined", [None, float("nan")])
def test_a_statistic_that_is_never_defined_has_no_interval(undefined):
    found = bootstrap_interval(lambda x: undefined, np.arange(3), np.arange(3), seed=0, n_boot=10)
    assert (found.estimate, found.low, found.high) == (None, None, None)
    assert found.n_undefined == 10


def test_one_patient_gives_an_estimate_but_no_interval():
    found = bootstrap_interval(
        lambda x: float(x.mean()), np.zeros(5), np.arange(5), seed=0, n_boot=10
    )
    assert (found.estimate, found.low, found.high, found.n_groups) == (2.0, None, None, 1)


@pytest.mark.parametrize(
    ("table", "statistic"),
    [
        (table_accuracy, accuracy_score),
        (table_balanced_accuracy, balanced_accuracy_score),
        (table_macro_f1, lambda a, b: f1_score(a, b, average="macro")),
    ],
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_counted_intervals_equal_scikit_learn_on_every_resample(table, statistic):
    labels, probs, groups = predictions(5, n=60)
    predicted = probs.argmax(axis=1)
    fast = bootstrap_table({"it": table}, groups, labels * 4 + predicted, 16, seed=7, n_boot=100)
    slow = bootstrap_interval(statistic, groups, labels, predicted, seed=7, n_boot=100)
    assert (fast["it"].estimate, fast["it"].low, fast["it"].high) == pytest.approx(
        (slow.estimate, slow.low, slow.high)
    )


def test_blocks_of_draws_do_not_change_which_groups_are_drawn_for_whom(monkeypatch):
    monkeypatch.setattr("braintumor_ray.metrics.intervals.BLOCK", 500)
    labels, probs, groups = predictions(6)
    predicted = probs.argmax(axis=1)
    cells = labels * 4 + predicted
    fast = bootstrap_table({"it": table_accuracy}, groups, cells, 16, seed=0, n_boot=101)["it"]
    slow = bootstrap_interval(accuracy, groups, labels, predicted, seed=0, n_boot=101)
    assert fast.n_boot == slow.n_boot == 101
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))


@pytest.mark.parametrize("decimals", [1, 6])  # with many equal scores, and with none
@pytest.mark.parametrize("block", [2_000_000, 100])
def test_areas_without_a_loop_equal_scikit_learns_on_every_resample(decimals, block, monkeypatch):
    monkeypatch.setattr("braintumor_ray.metrics.intervals.BLOCK", block)
    labels, probs, groups = predictions(9, n=60)
    truth, score = labels == 0, probs[:, 0].round(decimals)
    fast = bootstrap_auroc(truth, score, groups, seed=7, n_boot=101)
    slow = bootstrap_interval(auroc, groups, truth, score, seed=7, n_boot=101)
    assert dataclasses.astuple(fast) == pytest.approx(dataclasses.astuple(slow))


def test_areas_of_resamples_of_one_kind_are_left_out_and_counted():
    data = (np.array([True, False, False]), np.array([0.4, 0.4, 0.1]))
    fast = bootstrap_auroc(*data, np.arange(3), seed=1, n_boot=200)
    slow = bootstrap_interval(auroc, np.arange(3), *data, seed=1, n_boot=200)
    assert fast == slow
    assert fast.n_undefined > 20


def test_hand_worked_tables():
    # Rows true: class 0 has 3 of 4 right, class 1 has 1 of 2, class 2 is absent.
    counts = np.array([[3.0, 1, 0, 0, 1, 1, 0, 0, 0]])
    assert table_accuracy(counts)[0] == pytest.approx(4 / 6)
    assert table_balanced_accuracy(counts)[0] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert table_macro_f1(counts)[0] == pytest.approx((6 / 7 + 2 / 4 + 0) / 3)
    tn_fp_fn_tp = np.array([[8.0, 2, 1, 3], [0, 0, 1, 1], [1, 0, 0, 0]])
    np.testing.assert_allclose(table_sensitivity(tn_fp_fn_tp), [0.75, 0.5, np.nan])
    np.testing.assert_allclose(table_specificity(tn_fp_fn_tp), [0.8, np.nan, 1.0])


def test_headline_intervals_hold_the_metrics_they_are_named_after():
    labels, probs, groups = predictions(8)
    found = metric_intervals(labels, probs, groups, (0, 1, 2), 0.7, seed=0, n_boot=200)
    predicted, truth, score = probs.argmax(axis=1), labels < 3, probs[:, :3].sum(axis=1)
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "decision_accuracy": accuracy_score(truth, score >= 0.7),
        "sensitivity": recall_score(truth, score >= 0.7),
        "specificity": recall_score(~truth, score < 0.7),
        "auroc": auroc(truth, score),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].estimate == pytest.approx(value), name
        assert found[name].low < value < found[name].high, name


def test_sensitivity_without_tumors_has_no_interval():
    probs = np.array([[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    found = metric_intervals(np.ones(3, np.int64), probs, np.arange(3), (0,), 0.5, seed=0, n_boot=9)
    assert found["sensitivity"].estimate is None
    assert found["sensitivity"].n_undefined == 9
    assert found["specificity"].estimate == pytest.approx(2 / 3)


def test_a_thousand_counted_resamples_of_three_thousand_scans_are_quick():
    labels, probs, groups = predictions(9, n=3000)
    cells = labels * 4 + probs.argmax(axis=1)
    start = time.perf_counter()
    bootstrap_table({"it": table_balanced_accuracy}, groups, cells, 16, seed=0, n_boot=1000)
    assert time.perf_counter() - start < 2  # 0.05 s alone; the rest is room for a busy machine


ONE = np.ones(2)


@pytest.mark.parametrize(
    ("groups", "data", "options", "message"),
    [
        (np.arange(3), [ONE], {}, "groups has 3 rows and data has 2"),
        (np.arange(2), [ONE, np.ones(3)], {}, "one data array has 3 rows and the first has 2"),
        (np.array([]), [np.array([])], {}, "groups is empty"),
        (np.arange(2), [], {}, "no data arrays"),
        (np.array(["p", None], dtype=object), [ONE], {}, "groups holds None in row 1"),
        (np.array([np.nan, 1]), [ONE], {}, r"groups holds nan in row 0 \(1 such rows\)"),
        (np.arange(2), [ONE], {"n_boot": 0}, "n_boot is 0"),
        (np.arange(2), [ONE], {"level": 95}, "level 95"),
    ],
)
def test_what_cannot_be_resampled_is_refused_with_the_value(groups, data, options, message):
    with pytest.raises(MetricsError, match=message):
        bootstrap_interval(lambda *a: 0.0, groups, *data, seed=0, **options)


def test_a_cell_outside_the_table_is_refused():
    with pytest.raises(MetricsError, match=r"label 4 in row 1 is outside 0\.\.3"):
        bootstrap_table({"it": table_sensitivity}, np.arange(2), np.array([0, 4]), 4, seed=0)
