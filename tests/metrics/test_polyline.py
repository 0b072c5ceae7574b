"""Thinning keeps what bends and drops what is straight."""

import numpy as np

from braintumor_ray.metrics.classification import thin_polyline


def test_points_on_straight_lines_are_left_out_and_the_corner_stays():
    x = np.concatenate([np.zeros(256), np.linspace(0, 1, 257)])
    y = np.concatenate([np.linspace(0, 1, 257)[:-1], np.ones(257)])
    np.testing.assert_array_equal(thin_polyline(x, y, 200), [0, 256, 512])


def test_the_sharpest_corner_comes_first():
    y = np.zeros(100)
    y[[20, 70]] = [0.1, 1.0]
    assert thin_polyline(np.linspace(0, 1, 100), y, 3).tolist() == [0, 70, 99]


def test_a_curve_that_ends_where_it_began_is_thinned_too():
    angle = np.linspace(0, 2 * np.pi, 101)
    x, y = np.cos(angle), np.sin(angle)
    x[-1], y[-1] = x[0], y[0]
    kept = thin_polyline(x, y, 5)
    assert kept.tolist() == [0, 25, 50, 75, 100]


def test_a_short_curve_is_kept_whole():
    assert thin_polyline(np.arange(4.0), np.zeros(4), 4).tolist() == [0, 1, 2, 3]
