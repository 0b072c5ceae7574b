"""Neurons against classes: equal to the libraries' one-by-one functions."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, mannwhitneyu, pointbiserialr
from sklearn.metrics import roc_auc_score

from braintumor_ray.errors import UsageError
from braintumor_ray.neurons.statistics import neuron_stats

LABELS = ["a"] * 12 + ["b"] * 15 + ["c"] * 9


@pytest.fixture
def activations():
    x = np.random.default_rng(0).random((36, 7)).round(1)  # rounded: ties
    x[:12, 2] += 1.5  # goes with class a
    x[:, 5] = 0.3  # constant
    return x


def test_equals_scipy_and_scikit_learn(activations):
    stats = neuron_stats(activations, LABELS)
    defined = [0, 1, 2, 3, 4, 6]
    p = np.full((3, 7), np.nan)
    for i, name in enumerate("abc"):
        truth = np.array([label == name for label in LABELS])
        for neuron in defined:
            r = pointbiserialr(truth, activations[:, neuron])
            p[i, neuron] = r.pvalue
            assert stats.r[i, neuron] == pytest.approx(r.statistic)
            auroc = roc_auc_score(truth, activations[:, neuron])
            assert stats.auroc[i, neuron] == pytest.approx(auroc)
            assert stats.mean_in[i, neuron] == pytest.approx(activations[truth, neuron].mean())
            assert stats.mean_out[i, neuron] == pytest.approx(activations[~truth, neuron].mean())
    expected = false_discovery_control(p[:, defined].ravel()).reshape(3, -1)
    assert stats.r_q[:, defined] == pytest.approx(expected)


def test_auroc_p_values_are_those_of_mann_whitney(activations):
    stats = neuron_stats(activations[:, :2], LABELS)
    p = [
        mannwhitneyu(x[mask], x[~mask], method="asymptotic").pvalue
        for mask in (np.array(LABELS) == name for name in "abc")
        for x in activations[:, :2].T
    ]
    assert stats.auroc_q.ravel() == pytest.approx(false_discovery_control(p))


def test_constant_neuron_is_not_defined_and_never_on_top(activations):
    stats = neuron_stats(activations, LABELS)
    assert np.isnan(stats.r[:, 5]).all()
    assert np.isnan(stats.auroc_q[:, 5]).all()
    assert 5 not in stats.top(1, 7)
    assert len(stats.top(1, 7)) == 6


def test_planted_neuron_is_on_top_of_its_class(activations):
    stats = neuron_stats(activations, LABELS)
    assert stats.top(0, 1).tolist() == [2]
    assert stats.auroc[0, 2] == 1
    assert stats.r_q[0, 2] < 1e-6


def test_noise_alone_is_not_significant():
    x = np.random.default_rng(1).random((90, 400))
    stats = neuron_stats(x, ["a", "b", "c"] * 30)
    assert (stats.r_q < 0.05).sum() <= 2
    assert (stats.auroc_q < 0.05).sum() <= 2


def test_perfect_correlation_has_no_warning_and_q_zero():
    stats = neuron_stats(np.array([[0.0], [0.0], [1.0], [1.0]]), ["a", "a", "b", "b"])
    assert stats.r[:, 0].tolist() == pytest.approx([-1, 1])
    assert stats.r_q.max() == 0


@pytest.mark.parametrize("labels", [["a"] * 4, ["a", "b"], ["a", "b", "a"]])
def test_too_little_to_compare_is_refused(labels):
    with pytest.raises(UsageError, match="between two classes"):
        neuron_stats(np.ones((4, 2)), labels)
