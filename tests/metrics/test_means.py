"""Intervals of many means: the same as one by one."""

import numpy as np
import pytest

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.intervals import bootstrap_interval, bootstrap_means


def test_equals_the_interval_of_each_mean_alone():
    rng = np.random.default_rng(0)
    values, groups = rng.random((60, 3)), rng.integers(0, 17, 60)
    together = bootstrap_means(values, groups, seed=4, n_boot=200)
    for column, found in enumerate(together):
        alone = bootstrap_interval(np.mean, groups, values[:, column], seed=4, n_boot=200)
        assert found.estimate == pytest.approx(alone.estimate)
        assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
        assert (found.n_boot, found.n_groups) == (200, alone.n_groups)


def test_scans_of_one_patient_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).random(20), 10)[:, np.newaxis]
    (by_patient,) = bootstrap_means(values, np.repeat(np.arange(20), 10), seed=0)
    (by_scan,) = bootstrap_means(values, np.arange(200), seed=0)
    assert by_patient.high - by_patient.low > 2 * (by_scan.high - by_scan.low)


def test_one_group_has_an_estimate_and_no_interval():
    (found,) = bootstrap_means(np.array([[1.0], [3.0]]), np.array(["a", "a"]), seed=0)
    assert (found.estimate, found.low, found.high) == (2, None, None)


@pytest.mark.parametrize("values", [np.ones(3), np.empty((0, 2)), np.array([[np.nan], [1]])])
def test_what_has_no_mean_is_refused(values):
    with pytest.raises(MetricsError, match="means are taken of finite numbers"):
        bootstrap_means(values, np.arange(len(values)), seed=0)
