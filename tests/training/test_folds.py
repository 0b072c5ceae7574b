"""What the figures of the folds say together."""

import pytest
from scipy import stats

from braintumor_ray.training.folds import _mean_interval


def test_the_interval_of_the_mean_is_student_s():
    values = [0.8, 0.9, 0.7, 0.85]
    found = _mean_interval([*values, None])
    low, high = stats.t.interval(0.95, 3, sum(values) / 4, stats.sem(values))
    assert found == pytest.approx({"mean": sum(values) / 4, "low": low, "high": high})


@pytest.mark.parametrize(("values", "mean"), [([], None), ([None], None), ([0.5, None], 0.5)])
def test_fewer_than_two_folds_have_no_interval(values, mean):
    assert _mean_interval(values) == {"mean": mean, "low": None, "high": None}


def test_equal_folds_have_an_interval_without_width():
    assert _mean_interval([0.5, 0.5, 0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5}
