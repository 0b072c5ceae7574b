"""Parameter randomization: what is thrown away, what stays, and how alike the maps are."""

import numpy as np
import pytest
import torch

from braintumor_ray.errors import UsageError
from braintumor_ray.faithfulness.randomization import (
    compare_maps,
    randomization_check,
    randomized,
    spearman,
    ssim,
)
from braintumor_ray.models.classifier import Architecture, Classifier


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Classifier(Architecture("small-cnn", "mlp", 3, 64)).eval()


def prepare(images):
    return torch.from_numpy(images).float().div(255).unsqueeze(1).repeat(1, 3, 1, 1)


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    return {name: torch.equal(a[name], b[name]) for name in a}


def test_head_alone_is_drawn_again_and_the_original_stays(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = same(model, randomized(model, "head", 1))
    assert all(equal for name, equal in other.items() if name.startswith("backbone"))
    assert not any(equal for name, equal in other.items() if name.startswith("head"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_all_weights_are_drawn_again_by_seed(model):
    other = randomized(model, "all", 1)
    equal = same(model, other)
    drawn = [name for name, value in model.state_dict().items() if value.ndim > 1]
    assert drawn
    assert not any(equal[name] for name in drawn)
    assert all(same(other, randomized(model, "all", 1)).values())
    assert not all(same(other, randomized(model, "all", 2)).values())
    assert not other.training


def test_random_numbers_of_the_caller_are_left_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    randomized(model, "all", 1)
    assert torch.equal(torch.rand(3), expected)


def test_unknown_part_is_refused(model):
    with pytest.raises(UsageError, match="part 'tail'"):
        randomized(model, "tail", 0)


def test_check_compares_the_same_classes_and_does_not_depend_on_batches(model):
    images = np.random.default_rng(0).integers(0, 255, (5, 64, 64), dtype=np.uint8)
    classes = np.array([0, 1, 2, 0, 1])
    found = randomization_check(model, prepare, images, classes, seed=3)
    small = randomization_check(model, prepare, images, classes, seed=3, batch_size=2)
    assert (found["n"], found["seed"], set(found["methods"])) == (5, 3, {"gradcam", "gradcam_pp"})
    for parts in found["methods"].values():
        assert set(parts) == {"head", "all"}
    for method, parts in found["methods"].items():
        for part, values in parts.items():
            other = small["methods"][method][part]
            assert values["spearman"] == pytest.approx(other["spearman"], abs=1e-3)
            assert values["n_flat"] == other["n_flat"]


def test_same_network_has_equal_maps_and_noise_has_not():
    rng = np.random.default_rng(0)
    maps = rng.random((20, 7, 7)).astype(np.float32)
    equal = compare_maps(maps, maps * 3, 56)
    assert equal["spearman"] == pytest.approx(1)
    assert equal["ssim"] == pytest.approx(1)
    other = compare_maps(maps, rng.random((20, 7, 7)).astype(np.float32), 56)
    assert abs(other["spearman"]) < 0.15
    assert 0 < other["spearman_abs"] < 0.3
    assert other["ssim"] < 0.5


def test_flat_maps_are_counted_and_left_out():
    maps = np.random.default_rng(0).random((3, 7, 7)).astype(np.float32)
    flat = maps.copy()
    flat[1] = 0.5
    assert compare_maps(maps, flat, 28)["n_flat"] == 1
    assert compare_maps(maps, flat, 28)["spearman"] == pytest.approx(1)
    none = compare_maps(maps, np.zeros_like(maps), 28)
    assert (none["spearman"], none["ssim"], none["n_flat"]) == (None, None, 3)


def test_spearman_goes_by_rank():
    values = np.arange(9.0).reshape(3, 3)
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -(values**3)) == pytest.approx(-1)


def test_ssim_is_one_only_for_equal_pictures():
    picture = np.random.default_rng(0).random((40, 40)).astype(np.float32)
    assert ssim(picture, picture) == pytest.approx(1)
    assert ssim(picture, 1 - picture) < 0


def test_one_class_per_scan_is_needed(model):
    with pytest.raises(UsageError, match="2 scans and 1 classes"):
        randomization_check(model, prepare, np.zeros((2, 64, 64), np.uint8), np.array([0]), seed=0)
