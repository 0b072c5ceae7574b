"""Deletion, insertion and average drop, on a network whose reasons are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from braintumor_ray.errors import UsageError
from braintumor_ray.faithfulness.scores import (
    FaithfulnessOptions,
    area,
    curve,
    faithfulness,
    filled,
    sample_rows,
)

SIZE = 16
SQUARE = np.s_[4:8, 4:8]  # 16 of 256 pixels: all that the network below looks at


def looks_at_square(images):
    """Probability of class 1 rises with the brightness of one square."""
    brightness = images[:, SQUARE[0], SQUARE[1]].mean(axis=(1, 2)) / 255
    evidence = 12 * (brightness - 0.5)
    return SimpleNamespace(logits=np.stack([-evidence, evidence], axis=1).astype(np.float32) / 2)


def scan():
    image = np.zeros((SIZE, SIZE), np.uint8)
    image[SQUARE] = 255
    return image


def right_map():
    cam = np.zeros((SIZE, SIZE), np.float32)
    cam[SQUARE] = 1
    return cam


def wrong_map():
    cam = np.zeros((SIZE, SIZE), np.float32)
    cam[12:, 12:] = 1
    return cam


HIGH, LOW = 1 / (1 + np.exp(-6)), 1 / (1 + np.exp(6))


def test_deletion_of_the_reason_drops_at_once():
    found = curve(looks_at_square, scan(), right_map(), 1, kind="deletion", steps=16, fill="zero")
    assert found[0] == pytest.approx(HIGH)
    assert found[1:] == pytest.approx(LOW)


def test_insertion_of_the_reason_rises_at_once():
    found = curve(looks_at_square, scan(), right_map(), 1, kind="insertion", steps=16, fill="zero")
    assert found[0] == pytest.approx(LOW)
    assert found[1:] == pytest.approx(HIGH)


def test_areas_worked_by_hand():
    images = scan()[np.newaxis]
    options = FaithfulnessOptions(0, steps=16, deletion_fill="zero", insertion_start="zero")
    cams = {"right": right_map()[np.newaxis], "wrong": wrong_map()[np.newaxis]}
    found = faithfulness(looks_at_square, images, cams, np.array([1]), options)["methods"]
    # One trapezoid of 16 goes from high to low, the other fifteen stay low.
    assert found["right"]["deletion_auc"] == pytest.approx((HIGH + LOW) / 2 / 16 + LOW * 15 / 16)
    assert found["right"]["insertion_auc"] == pytest.approx((HIGH + LOW) / 2 / 16 + HIGH * 15 / 16)
    assert found["right"]["deletion_auc"] < found["random"]["deletion_auc"]
    assert found["right"]["deletion_auc"] < found["wrong"]["deletion_auc"]
    assert found["right"]["insertion_auc"] > found["random"]["insertion_auc"]


def test_average_drop_and_increase():
    images = np.stack([scan(), np.full((SIZE, SIZE), 255, np.uint8)])
    cams = {"right": np.stack([right_map()] * 2), "wrong": np.stack([wrong_map()] * 2)}
    options = FaithfulnessOptions(0, steps=2)
    found = faithfulness(looks_at_square, images, cams, np.array([1, 1]), options)["methods"]
    assert found["right"]["average_drop"] == pytest.approx(0)
    assert found["wrong"]["average_drop"] == pytest.approx((HIGH - LOW) / HIGH)
    assert found["wrong"]["increase_in_confidence"] == 0


def test_increase_counts_scans_that_gain_when_only_the_hot_part_is_left():
    def disturbed_by_the_rest(images):
        rest = images[:, 12:, 12:].mean(axis=(1, 2)) / 255
        return SimpleNamespace(logits=np.stack([rest * 4, 0 * rest], axis=1).astype(np.float32))

    images = np.full((2, SIZE, SIZE), 255, np.uint8)
    cams = {"right": np.stack([right_map()] * 2)}
    options = FaithfulnessOptions(0, steps=2)
    found = faithfulness(disturbed_by_the_rest, images, cams, np.array([1, 0]), options)
    assert found["methods"]["right"]["increase_in_confidence"] == 0.5


def test_batches_do_not_change_anything():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (5, SIZE, SIZE), dtype=np.uint8)
    cams = {"m": rng.random((5, 4, 4))}
    classes = np.array([0, 1, 1, 0, 1])
    small, large = (
        faithfulness(
            looks_at_square, images, cams, classes, FaithfulnessOptions(1, steps=7, batch_size=b)
        )
        for b in (3, 1000)
    )
    assert small == large


def test_temperature_softens_the_curve():
    cold = curve(looks_at_square, scan(), right_map(), 1, kind="deletion")
    warm = curve(looks_at_square, scan(), right_map(), 1, kind="deletion", temperature=10)
    assert warm[0] < cold[0]


def test_fills():
    image = np.zeros((40, 40), np.uint8)
    image[:, 20:] = 200
    assert (filled(image, "mean") == 100).all()
    assert not filled(image, "zero").any()
    blurred = filled(image, "blur")
    assert 0 < blurred[20, 19] < 200
    with pytest.raises(UsageError, match="fill 'noise'"):
        filled(image, "noise")


def test_area_of_a_straight_line():
    assert area(np.linspace(1, 0, 11)) == pytest.approx(0.5)


def test_sample_is_seeded_sorted_and_never_longer_than_there_is():
    assert sample_rows(100, 10, 3).tolist() == sorted(sample_rows(100, 10, 3).tolist())
    assert sample_rows(100, 10, 3).tolist() != sample_rows(100, 10, 4).tolist()
    assert sample_rows(4, 10, 0).tolist() == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="sample of 0"):
        sample_rows(4, 0, 0)


@pytest.mark.parametrize(
    ("cams", "classes", "steps", "message"),
    [
        ({"m": np.ones((1, 4, 4))}, np.array([0, 0]), 5, "numbers of scans differ"),
        ({"m": np.ones((1, 4, 4))}, np.array([0]), 0, "0 steps"),
        ({}, np.array([0]), 5, "0 methods"),
        ({"random": np.ones((1, 4, 4))}, np.array([0]), 5, "name of the baseline"),
    ],
)
def test_what_cannot_be_measured_is_refused(cams, classes, steps, message):
    options = FaithfulnessOptions(0, steps=steps)
    with pytest.raises(UsageError, match=message):
        faithfulness(looks_at_square, scan()[np.newaxis], cams, classes, options)
