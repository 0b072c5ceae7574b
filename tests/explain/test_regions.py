"""Heat by region: the shares of the upsampled map, without upsampling it."""

import random

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from braintumor_ray.errors import BrainTumorError
from braintumor_ray.explain.regions import (
    BACKGROUND,
    INSIDE,
    NO_SHARES,
    RIM,
    Shares,
    area_shares,
    head_regions,
    heat_shares,
    heat_shares_batch,
    looks_at_border,
    region_weights,
)

SIZE = 224


def disc_head(radius=80, brain=90, skull=220, air=4, size=SIZE):
    """A phantom-like scan: bright scalp ring, darker brain, nearly black air with noise."""
    gray = np.random.default_rng(3).integers(0, air + 1, (size, size)).astype(np.uint8)
    center = (size // 2, size // 2)
    cv2.circle(gray, center, radius, skull, cv2.FILLED)
    cv2.circle(gray, center, radius - 6, 20, cv2.FILLED)  # skull: dark
    cv2.circle(gray, center, radius - 10, brain, cv2.FILLED)
    return gray


def upsampled(cam, size):
    tensor = torch.from_numpy(np.asarray(cam, np.float64))[None, None]
    up = torch.nn.functional.interpolate(tensor, (size, size), mode="bilinear", align_corners=False)
    return up[0, 0].numpy()


def test_disc_head_is_found_to_its_outer_edge_within_two_pixels():
    regions = head_regions(disc_head(radius=80))
    assert regions.dtype == np.uint8
    assert np.sqrt((regions > 0).sum() / np.pi) == pytest.approx(80, abs=2)


def test_rim_is_the_outer_tenth_of_the_diameter():
    # A disc of radius R loses 0.2 R: 64% of its area is inside.
    regions = head_regions(disc_head(radius=80))
    assert (regions == INSIDE).sum() / (regions > 0).sum() == pytest.approx(0.64, abs=0.02)
    depth = distance_transform_edt(regions > 0)
    limit = 0.1 * 2 * np.sqrt((regions > 0).sum() / np.pi)
    assert (regions[depth < limit - 0.8] != INSIDE).all()
    assert (regions[depth > limit + 0.8] == INSIDE).all()


def test_dark_brain_within_a_bright_ring_belongs_to_the_head():
    regions = head_regions(disc_head(brain=15))
    assert regions[SIZE // 2, SIZE // 2] == INSIDE


def test_head_is_found_to_its_edge_though_bright_lesions_draw_otsus_threshold_above_the_brain():
    gray = np.zeros((SIZE, SIZE), np.uint8)
    cv2.circle(gray, (112, 112), 80, 70, cv2.FILLED)
    cv2.circle(gray, (90, 100), 36, 250, cv2.FILLED)
    cv2.circle(gray, (150, 120), 30, 250, cv2.FILLED)
    otsu, _ = cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    assert otsu >= 70  # plain Otsu keeps the lesions only
    head_area = 1 - area_shares(head_regions(gray)).background
    assert head_area == pytest.approx(np.pi * 80**2 / SIZE**2, rel=0.05)


def test_only_the_largest_object_is_head():
    gray = disc_head(radius=60)
    cv2.circle(gray, (15, 15), 10, 255, cv2.FILLED)
    assert head_regions(gray)[15, 15] == BACKGROUND


def test_where_the_picture_cuts_the_head_its_edge_is_rim():
    gray = disc_head(radius=105)[:, 30:194].copy()
    regions = head_regions(cv2.resize(gray, (SIZE, SIZE)))
    assert regions[SIZE // 2, 0] == RIM
    assert regions[SIZE // 2, SIZE // 2] == INSIDE


def test_thin_bright_frame_around_the_picture_is_not_taken_for_the_head():
    gray = disc_head(radius=80, brain=150, skull=250)
    cv2.rectangle(gray, (0, 0), (SIZE - 1, SIZE - 1), 110, 1)
    assert area_shares(head_regions(gray)).background == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("value", [0, 90, 255])
def test_flat_picture_has_no_head(value):
    assert head_regions(np.full((SIZE, SIZE), value, np.uint8)) is None


def test_noise_and_specks_are_no_head():
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE)).astype(np.uint8)
    speck = np.zeros((SIZE, SIZE), np.uint8)
    speck[100:110, 100:110] = 200
    assert head_regions(noise) is None
    assert head_regions(speck) is None


def test_finding_a_head_changes_nothing_in_the_picture_and_is_repeatable():
    gray = disc_head()
    before = gray.copy()
    assert (head_regions(gray) == head_regions(gray)).all()
    assert (gray == before).all()


@pytest.mark.parametrize("bad", [np.zeros((8, 8)), np.zeros((8, 8, 3), np.uint8)])
def test_head_wants_one_gray_uint8_picture(bad):
    with pytest.raises(BrainTumorError, match="uint8 picture"):
        head_regions(bad)


@settings(max_examples=60, deadline=None)
@given(
    raw=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    size=st.sampled_from([16, 64, 96, 224]),
    seed=st.integers(0, 2**16),
)
def test_weighted_sum_of_the_raw_map_equals_the_share_of_the_upsampled_map(raw, size, seed):
    rng = np.random.default_rng(seed)
    regions = rng.integers(0, 3, (size, size)).astype(np.uint8)
    cam = rng.random(raw)
    up = upsampled(cam, size)
    expected = [up[regions == region].sum() / up.sum() for region in (INSIDE, RIM, BACKGROUND)]
    shares = heat_shares(cam, region_weights(regions, raw))
    np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_weights_of_all_regions_together_are_the_area_of_each_raw_pixel():
    weights = region_weights(head_regions(disc_head()), (7, 7))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(), SIZE * SIZE, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=0)[3, 3], (SIZE / 7) ** 2, rtol=1e-5)


def test_all_heat_in_the_middle_is_all_inside():
    cam = np.zeros((7, 7), np.float16)
    cam[3, 3] = 2.5
    regions = head_regions(disc_head(radius=100))
    assert heat_shares(cam, region_weights(regions, (7, 7))) == (1.0, 0.0, 0.0)


def test_all_heat_in_a_corner_is_all_background():
    cam = np.zeros((7, 7))
    cam[0, 0] = 1
    shares = heat_shares(cam, region_weights(head_regions(disc_head(radius=70)), (7, 7)))
    assert shares.background == 1.0
    assert looks_at_border(shares, area_shares(head_regions(disc_head(radius=70))))


def test_even_heat_is_shared_as_the_area():
    regions = head_regions(disc_head())
    shares = heat_shares(np.full((7, 7), 0.3), region_weights(regions, (7, 7)))
    np.testing.assert_allclose(shares, area_shares(regions), atol=1e-6)


def test_heat_on_the_scalp_ring_is_rim_and_warned_of():
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    ring = (np.abs(np.hypot(x, y) - 85) < 7).astype(float)
    regions = head_regions(disc_head(radius=95))
    shares = heat_shares(ring, region_weights(regions, ring.shape))
    assert shares.rim > 0.95
    assert looks_at_border(shares, area_shares(regions))


def test_no_head_or_no_heat_has_no_shares():
    weights = region_weights(head_regions(disc_head()), (7, 7))
    assert heat_shares(np.zeros((7, 7)), weights) == NO_SHARES
    assert heat_shares(np.full((7, 7), np.nan), weights) == NO_SHARES
    assert heat_shares(np.ones((7, 7)), region_weights(None, (7, 7))) == NO_SHARES
    assert area_shares(None) == NO_SHARES


def test_float16_maps_do_not_overflow():
    cam = np.full((7, 7), 60000, np.float16)
    shares = heat_shares(cam, region_weights(head_regions(disc_head()), (7, 7)))
    assert sum(shares) == pytest.approx(1.0, abs=1e-9)


def test_batch_equals_one_by_one():
    rng = np.random.default_rng(5)
    pictures = [disc_head(radius=r) for r in (50, 70, 90)]
    weights = np.stack(
        [region_weights(head_regions(p), (5, 8)) for p in pictures] + [region_weights(None, (5, 8))]
    )
    cams = rng.random((4, 5, 8)).astype(np.float16)
    batch = heat_shares_batch(cams, weights)
    assert batch.shape == (4, 3)
    for row, cam, weight in zip(batch[:3], cams, weights, strict=False):
        assert tuple(row) == heat_shares(cam, weight)
    assert np.isnan(batch[3]).all()


def test_maps_and_weights_of_different_shapes_are_refused():
    weights = region_weights(head_regions(disc_head()), (7, 7))
    with pytest.raises(BrainTumorError, match="do not belong together"):
        heat_shares(np.ones((8, 8)), weights)
    with pytest.raises(BrainTumorError, match="do not belong together"):
        heat_shares_batch(np.ones((2, 7, 7)), weights[None])


@pytest.mark.parametrize(
    ("heat", "warned"),
    [
        (Shares(0.6, 0.2, 0.2), False),
        (Shares(0.3, 0.5, 0.2), True),
        (Shares(0.3, 0.1, 0.6), True),
        (NO_SHARES, False),
    ],
)
def test_border_is_looked_at_when_it_holds_more_heat_than_area(heat, warned):
    assert looks_at_border(heat, Shares(0.3, 0.3, 0.4)) is warned
    assert looks_at_border(heat, NO_SHARES) is False


@pytest.mark.real
def test_heads_are_found_in_real_scans(real_data):
    files = sorted((real_data / "mri4").glob("*/*/*.jpg"))
    sample = random.Random(0).sample(files, 200)
    found = 0
    for file in sample:
        gray = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        regions = head_regions(cv2.resize(gray, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
        area = area_shares(regions)
        found += area.background is not None and 0.15 < 1 - area.background < 0.95
    assert found >= 190
