"""Heatmaps against masks: cases worked by hand, baselines, and what is left out."""

import numpy as np
import pytest

from braintumor_ray.errors import UsageError
from braintumor_ray.explain.overlay import heatmap_at
from braintumor_ray.localization.scores import MEASURES, center_map, localize

SIZE = 32


def box_mask(top, left, bottom, right, size=SIZE):
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return mask


def score_map(cam, mask):
    table = localize({"map": cam[np.newaxis]}, [mask], seed=0)
    return next(row for row in table.to_pylist() if row["method"] == "map")


def only(scores):
    return {name: scores[name] for name in MEASURES}


def test_perfect_map_scores_one_in_everything():
    mask = box_mask(8, 4, 20, 16)
    assert only(score_map(mask.astype(np.float16), mask)) == dict.fromkeys(MEASURES, 1.0)


def test_map_shifted_off_the_tumor_scores_zero_in_everything():
    cam = box_mask(0, 20, 8, 30).astype(np.float32)
    assert only(score_map(cam, box_mask(16, 2, 28, 12))) == dict.fromkeys(MEASURES, 0.0)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_map_is_a_miss(value):
    mask = np.ones((SIZE, SIZE), bool)  # even where every point would be a hit
    scores = score_map(np.full((4, 4), value, np.float32), mask)
    assert scores["flat"]
    assert [scores[name] for name in ("pointing", "rank", "iou", "dice", "box_iou")] == [0] * 5
    assert scores["mass"] == (1 if value else 0)


def test_zero_map_scores_zero_throughout():
    assert only(score_map(np.zeros((7, 7)), box_mask(0, 0, 9, 9))) == dict.fromkeys(MEASURES, 0.0)


def test_half_overlapping_map_worked_by_hand():
    # Map and mask: 16 x 16 squares that share half: 128 px of 256.
    scores = score_map(box_mask(8, 0, 24, 16).astype(np.float32), box_mask(8, 8, 24, 24))
    assert scores["mass"] == 0.5
    assert scores["rank"] == 0.5
    assert scores["iou"] == pytest.approx(1 / 3)
    assert scores["dice"] == 0.5
    assert scores["box_iou"] == pytest.approx(1 / 3)
    assert scores["mask_area"] == 256 / SIZE**2


def test_mass_is_of_the_raw_upsampled_map_not_of_the_stretched_one():
    rng = np.random.default_rng(0)
    cam = (5 + rng.random((7, 7))).astype(np.float32)
    mask = box_mask(3, 9, 20, 22)
    import cv2

    up = cv2.resize(cam, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    assert score_map(cam, mask)["mass"] == pytest.approx(up[mask].sum() / up.sum(), rel=1e-5)
    assert score_map(cam * 1000, mask)["mass"] == pytest.approx(score_map(cam, mask)["mass"])


def test_rank_takes_exactly_as_many_pixels_as_the_mask_has():
    rng = np.random.default_rng(1)
    for _ in range(20):
        cam = rng.random((7, 7)).astype(np.float32)
        mask = rng.random((SIZE, SIZE)) < rng.uniform(0.01, 0.6)
        heat = heatmap_at(cam, (SIZE, SIZE))
        highest = np.argsort(-heat, axis=None, kind="stable")[: mask.sum()]
        expected = mask.ravel()[highest].mean()
        # Tied pixels may be chosen otherwise; there are few.
        assert score_map(cam, mask)["rank"] == pytest.approx(expected, abs=8 / mask.sum())


def test_ties_for_the_last_rank_count_with_their_share():
    cam = np.zeros((SIZE, SIZE), np.float32)
    cam[:2] = 1.0  # 64 equal pixels, of which the mask has 16
    assert score_map(cam, box_mask(0, 0, 1, 16))["rank"] == 16 / 64


def test_pointing_goes_by_the_highest_point():
    cam = box_mask(0, 0, 10, 10).astype(np.float32)
    cam[25, 25] = 2.0
    assert score_map(cam, box_mask(24, 24, 28, 28))["pointing"] == 1
    assert score_map(cam, box_mask(0, 0, 10, 10))["pointing"] == 0


def test_box_is_of_the_largest_part_and_may_fit_one_of_several_tumors():
    cam = (box_mask(4, 4, 12, 12) | box_mask(28, 28, 30, 30)).astype(np.float32)
    mask = box_mask(4, 4, 12, 12) | box_mask(20, 2, 30, 12)
    assert score_map(cam, mask)["box_iou"] == 1


def test_center_baseline_hits_a_central_tumor_and_misses_another():
    table = localize(
        {"gradcam": np.random.default_rng(0).random((2, 4, 4))},
        [box_mask(12, 12, 20, 20), box_mask(0, 0, 6, 6)],
        seed=0,
    ).to_pylist()
    assert [r["pointing"] for r in table if r["method"] == "centre"] == [1, 0]
    assert center_map((SIZE, SIZE)).argmax() in (15 * 33, 15 * 32 + 16, 16 * 32 + 15, 16 * 33)


def test_whole_head_scores_the_chance_to_hit():
    image = np.zeros((SIZE * 2, SIZE * 2), np.uint8)
    image[8:56, 8:56] = 120
    mask = box_mask(16, 16, 40, 40, size=SIZE * 2)
    rows = localize({"m": np.ones((1, 4, 4))}, [mask], [image], seed=0).to_pylist()
    (head,) = [row for row in rows if row["method"] == "whole_head"]
    area = 24 * 24 / (48 * 48)
    assert head["pointing"] == head["mass"]
    for name in ("pointing", "rank", "iou"):
        assert head[name] == pytest.approx(area, rel=0.1)


def test_whole_head_is_left_out_where_there_is_no_head():
    black = np.zeros((SIZE, SIZE), np.uint8)
    table = localize({"m": np.ones((1, 4, 4))}, [box_mask(0, 0, 4, 4)], [black], seed=0)
    assert table["method"].to_pylist() == ["m", "centre", "random"]


def test_random_baseline_is_at_chance_and_depends_on_seed_and_scan_alone():
    masks = [box_mask(4, 10, 20, 26)] * 300
    cams = {"m": np.ones((300, 7, 7))}

    def noise(**options):
        rows = localize(cams, masks, **options).to_pylist()
        return [row["mass"] for row in rows if row["method"] == "random"]

    first = noise(seed=3)
    assert first == noise(seed=3)
    assert first != noise(seed=4)
    assert np.mean(first) == pytest.approx(0.25, abs=0.01)
    shorter = localize({"m": np.ones((9, 7, 7))}, masks[:9], seed=3).to_pylist()
    assert [row["mass"] for row in shorter if row["method"] == "random"] == first[:9]


def test_scans_without_tumor_or_truth_are_left_out():
    masks = [None, np.zeros((SIZE, SIZE), bool), box_mask(0, 0, 4, 4)]
    table = localize({"a": np.ones((3, 4, 4)), "b": np.ones((3, 4, 4))}, masks, seed=0)
    assert set(table["row"].to_pylist()) == {2}
    assert table.num_rows == 4


def test_scores_do_not_depend_on_the_company():
    rng = np.random.default_rng(5)
    cams = {"a": rng.random((6, 7, 7)), "b": rng.random((6, 7, 7))}
    masks = [box_mask(i, 2 * i, i + 9, 2 * i + 7) for i in range(6)]
    table = localize(cams, masks, seed=0).to_pylist()
    for row in table:
        if row["method"] in cams:
            alone = score_map(cams[row["method"]][row["row"]], masks[row["row"]])
            assert only(row) == only(alone)


@pytest.mark.parametrize(
    ("cams", "masks", "message"),
    [
        ({}, [], "no maps"),
        ({"a": np.ones((2, 4, 4)), "b": np.ones((3, 4, 4))}, [], "different numbers"),
        ({"random": np.ones((1, 4, 4))}, [], "name of a baseline"),
        ({"a": np.ones((2, 4, 4))}, [None], "1 masks"),
        ({"a": np.ones((1, 4, 4))}, [None, None], "more than 1 masks"),
        ({"a": -np.ones((1, 4, 4))}, [np.ones((8, 8), bool)], "after the ReLU"),
    ],
)
def test_what_does_not_belong_together_is_refused(cams, masks, message):
    with pytest.raises(UsageError, match=message):
        localize(cams, masks, seed=0)
