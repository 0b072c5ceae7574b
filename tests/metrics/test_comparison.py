"""Two models on the same scans: McNemar by hand, paired bootstrap by whole groups."""

import math

import numpy as np
import pytest

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.classification import auroc
from braintumor_ray.metrics.comparison import McNemar, mcnemar_exact, paired_difference
from braintumor_ray.metrics.intervals import bootstrap_interval


def outcomes(both, only_a, only_b, neither):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


def mean(correct):
    return float(np.mean(correct))


def test_hand_worked_mcnemar():
    found = mcnemar_exact(*outcomes(50, 8, 2, 40))
    # Ten coins, at most two or at least eight heads: 2 * (1 + 10 + 45) / 1024.
    assert found == McNemar(50, 8, 2, 40, pytest.approx(112 / 1024))


def test_mcnemar_of_five_differences_all_one_way():
    assert mcnemar_exact(*outcomes(3, 5, 0, 1)).p_value == pytest.approx(2 / 32)


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 9), (3, 14), (20, 11), (7, 7)])
def test_mcnemar_equals_the_doubled_binomial_tail(only_a, only_b):
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n
    found = mcnemar_exact(*outcomes(10, only_a, only_b, 10))
    assert found.p_value == pytest.approx(min(1.0, tail))


def test_mcnemar_ignores_the_scans_on_which_both_agree():
    few, many = outcomes(0, 8, 2, 0), outcomes(900, 8, 2, 500)
    assert mcnemar_exact(*few).p_value == mcnemar_exact(*many).p_value


def test_mcnemar_is_symmetric():
    a, b = outcomes(5, 9, 2, 3)
    assert mcnemar_exact(a, b).p_value == mcnemar_exact(b, a).p_value


def test_models_that_never_differ_have_a_p_value_of_one():
    assert mcnemar_exact(*outcomes(4, 0, 0, 3)).p_value == 1.0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 0], [1], "correct_a has 2 rows and correct_b has 1"),
        ([], [], "correct_a is empty"),
        ([0.9, 0.1], [1, 0], "correct_a holds 0.9 in row 0"),
        ([np.nan, 0], [1, 0], "correct_a holds nan"),
    ],
)
def test_mcnemar_refuses_what_is_not_paired_correctness(a, b, message):
    with pytest.raises(MetricsError, match=message):
        mcnemar_exact(np.array(a), np.array(b))


def test_a_model_does_not_differ_from_itself():
    correct = np.arange(50) % 3 > 0
    found = paired_difference(mean, np.arange(50), [correct], [correct], seed=0)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_difference_is_a_minus_b():
    a, b = outcomes(60, 30, 5, 5)
    found = paired_difference(mean, np.arange(100), [a], [b], seed=0)
    assert found.estimate == pytest.approx(0.25)
    assert 0 < found.low < 0.25 < found.high
    swapped = paired_difference(mean, np.arange(100), [b], [a], seed=0)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_pairing_is_narrower_than_two_separate_intervals():
    a, b = outcomes(60, 12, 8, 20)
    groups = np.arange(100)
    paired = paired_difference(mean, groups, [a], [b], seed=0)
    alone = [bootstrap_interval(mean, groups, c, seed=s) for s, c in enumerate((a, b))]
    unpaired = math.hypot(*(i.high - i.low for i in alone))
    assert paired.high - paired.low < 0.8 * unpaired


def test_copies_inside_a_group_do_not_make_a_difference_certain():
    a, b = outcomes(20, 6, 3, 11)
    groups = np.arange(40)
    once = paired_difference(mean, groups, [a], [b], seed=0)
    copies = paired_difference(
        mean, np.repeat(groups, 9), [np.repeat(a, 9)], [np.repeat(b, 9)], seed=0
    )
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))


def test_a_metric_of_several_arrays_can_be_compared():
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.5
    good, poor = truth + rng.normal(0, 0.5, 300), truth + rng.normal(0, 3, 300)
    found = paired_difference(
        auroc, np.arange(300), [truth, good], [truth, poor], seed=0, n_boot=200
    )
    assert found.estimate == pytest.approx(auroc(truth, good) - auroc(truth, poor))
    assert found.low > 0


def test_a_difference_with_an_undefined_side_is_undefined():
    truth, score = np.ones(4, dtype=bool), np.arange(4.0)
    found = paired_difference(auroc, np.arange(4), [truth, score], [truth, score], seed=0, n_boot=5)
    assert (found.estimate, found.n_undefined) == (None, 5)
