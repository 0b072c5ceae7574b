"""The detector lets scans like the training scans pass and stops what is no brain scan."""

import numpy as np
import pytest
import torch

from braintumor_ray.decode.decode import decode
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.explain.regions import head_regions
from braintumor_ray.models.classifier import build_backbone, normalization_of, normalize
from braintumor_ray.models.domain import DomainDetector, domain_limit
from braintumor_ray.models.weights import load_pretrained
from tests.foreign_images import foreign_images


def features(n, seed=0, shift=0.0, spread=1.0):
    """Features around a mean, mostly in a plane of ten dimensions, as pooled maps are."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(99).normal(size=(40, 10)))[0]
    inside = spread * random.normal(size=(n, 10)) * np.linspace(5, 1, 10) @ directions.T
    off = shift * (-1.0) ** np.arange(40)
    return (20 + inside + random.normal(0, 0.3, (n, 40)) + off).astype(np.float32)


def test_scans_like_the_training_scans_are_near():
    detector = DomainDetector.fit(features(500))
    assert detector.distance(features(500, seed=1)).mean() == pytest.approx(np.sqrt(2), rel=0.1)


def test_far_along_the_main_directions_and_off_them_are_both_far():
    detector = DomainDetector.fit(features(500), rank=10)
    limit = np.quantile(detector.distance(features(500, seed=1)), 0.99)
    along = features(50, seed=2, spread=6)
    off = features(50, seed=2, shift=2)
    assert (detector.distance(along) > limit).mean() > 0.9
    assert (detector.distance(off) > limit).all()


def test_only_the_direction_of_features_counts():
    detector = DomainDetector.fit(features(500))
    np.testing.assert_allclose(
        detector.distance(features(9, seed=1) / 10),
        detector.distance(features(9, seed=1)),
        rtol=1e-3,
    )
    assert np.isfinite(detector.distance(np.zeros((1, 40)))).all()


@pytest.mark.parametrize("n", [2, 5, 300])
def test_few_scans_make_a_gate_too(n):
    detector = DomainDetector.fit(features(n))
    assert np.isfinite(detector.distance(features(10, seed=1))).all()
    assert detector.basis.shape[1] <= max(1, n // 4)


def test_features_without_two_scans_are_refused():
    with pytest.raises(ValueError, match="n >= 2"):
        DomainDetector.fit(features(1))


def test_foreign_pictures_are_the_same_for_the_same_seed():
    one, two = foreign_images(3, 18), foreign_images(3, 18)
    assert [kind for kind, _ in one] == [kind for kind, _ in two]
    assert len({kind for kind, _ in one}) == 9
    for (_, a), (_, b) in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.real
@pytest.mark.slow
def test_foreign_pictures_are_stopped_and_held_out_scans_pass(real_data):
    weights = real_data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    backbone = build_backbone("mobilenetv2_100").eval()
    load_pretrained(backbone, "mobilenetv2_100", str(weights))
    preprocessing = Preprocessing(224, "area", *normalization_of(backbone))

    def pooled(grays):
        squares = [preprocessing.resize(gray) for gray in grays]
        with torch.inference_mode():
            parts = [
                backbone.forward_features(
                    normalize(torch.from_numpy(np.stack(squares[i : i + 32])), preprocessing)
                ).mean((2, 3))
                for i in range(0, len(squares), 32)
            ]
        headless = np.array([head_regions(square) is None for square in squares])
        return torch.cat(parts).numpy(), headless

    paths = sorted((real_data / "mri4").glob("*/*/*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(paths))[:650]
    scans, _ = pooled([decode(paths[i].read_bytes()).gray for i in chosen[:450]])
    detector = DomainDetector.fit(scans[:250])
    limit = domain_limit(detector.distance(scans[250:]))

    def flagged(grays):
        found, headless = pooled(grays)
        return ((detector.distance(found) > limit) | headless).mean()

    assert flagged([decode(paths[i].read_bytes()).gray for i in chosen[450:]]) <= 0.02
    assert flagged([picture for _, picture in foreign_images(0, 200)]) >= 0.95
