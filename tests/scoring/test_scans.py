"""Comparing ids, against NumPy's own ways."""

import numpy as np
import pytest

from braintumor_ray.scoring.scans import are_distinct, are_in


@pytest.mark.parametrize(("count", "others"), [(0, 0), (0, 5), (5, 0), (1, 1), (300, 200)])
def test_are_in_is_isin(count, others):
    random = np.random.default_rng(count + others)
    ids, among = (random.integers(-50, 50, size) for size in (count, others))
    assert are_in(ids, np.sort(among)).tolist() == np.isin(ids, among).tolist()
    assert are_in(ids, np.sort(among)).dtype == bool


@pytest.mark.parametrize("ids", [[], [3], [3, 1, 2], [3, 1, 3], [-1, -1]])
def test_are_distinct(ids):
    assert are_distinct(np.array(ids, np.int64)) == (len(set(ids)) == len(ids))
