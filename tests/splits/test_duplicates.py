"""Copies are found, strangers are kept apart, and crowds do not blow the search up."""

import hashlib
import struct
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braintumor_ray.decode.hashes import (
    dct_hash,
    difference_hash,
    fingerprint,
    is_flat,
    pixel_sha256,
)
from braintumor_ray.errors import UsageError
from braintumor_ray.splits.duplicates import (
    connected_rows,
    duplicate_groups,
    first_with_same_value,
    near_duplicate_pairs,
)
from braintumor_ray.splits.splits import check_leaks, grouped_split


def head(seed, size=200):
    """A bright ellipse with blobs inside on black, JPEG-like noise over all of it."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size), np.float32)
    middle = size // 2
    cv2.ellipse(image, (middle, middle), (size // 3, int(size * 0.42)), 0, 0, 360, 110, -1)
    for _ in range(25):
        x, y = rng.normal(middle, size / 8, 2).astype(int).tolist()
        cv2.circle(image, (x, y), int(rng.integers(4, size // 10)), int(rng.integers(40, 230)), -1)
    noisy = cv2.GaussianBlur(image, (0, 0), 2) + rng.normal(0, 2, image.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def jpeg(gray, quality):
    _, data = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


def resized(gray, factor):
    return cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)


def brightened(gray, gain, offset):
    return (gray * np.float32(gain) + offset).clip(0, 255).round().astype(np.uint8)


def random_hashes(rng, n):
    return rng.integers(0, 2**64, (n, 4), dtype=np.uint64, endpoint=False)


def with_bits_flipped(hashes, rng, at_most):
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    for row in bits:
        row[rng.choice(256, rng.integers(0, at_most + 1), replace=False)] ^= 1
    return np.packbits(bits, axis=1).view(np.uint64)


def brute_force_pairs(hashes, distance):
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    return {
        (i, j)
        for i in range(len(bits))
        for j in range(i + 1, len(bits))
        if np.count_nonzero(bits[i] != bits[j]) <= distance
    }


def as_set(pairs):
    return {(int(i), int(j)) for i, j in pairs}


def components(n, pairs):
    return connected_rows(n, np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)).tolist()


def test_pixel_hash_is_sha256_of_shape_then_pixels():
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    expected = hashlib.sha256(struct.pack("<qq", 2, 3) + bytes(range(6))).hexdigest()
    assert pixel_sha256(gray) == expected


def test_pixel_hash_knows_the_shape():
    assert pixel_sha256(np.zeros((2, 8), np.uint8)) != pixel_sha256(np.zeros((4, 4), np.uint8))


def test_pixel_hash_ignores_the_memory_layout():
    gray = head(1)
    assert pixel_sha256(np.asfortranarray(gray)) == pixel_sha256(gray)
    assert pixel_sha256(np.repeat(gray, 2, axis=1)[:, ::2]) == pixel_sha256(gray)


@pytest.mark.parametrize("function", [pixel_sha256, difference_hash, dct_hash, is_flat])
@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32), np.zeros((0, 4), np.uint8)],
)
def test_only_gray_images_with_pixels_are_hashed(function, image):
    with pytest.raises(UsageError, match="decode to gray first"):
        function(image)


def test_difference_hash_says_which_pixels_are_brighter_than_their_left_neighbors():
    ramp = np.tile(np.arange(17, dtype=np.uint8) * 10, (16, 1))
    assert difference_hash(ramp).tolist() == [2**64 - 1] * 4
    assert difference_hash(ramp[:, ::-1]).tolist() == [0] * 4
    ramp[0, 1:] = 0
    ramp[0, 16] = 10
    assert difference_hash(ramp).tolist() == [2**64 - 1 - (2**15 - 1), *[2**64 - 1] * 3]


def test_dct_hash_survives_a_change_of_contrast_and_brightness():
    half = head(2) // 2
    assert dct_hash(half).tolist() == dct_hash(half * 2).tolist() == dct_hash(half + 60).tolist()


def test_blank_and_noise_only_images_are_flat_and_heads_are_not():
    noise = np.random.default_rng(0).normal(100, 20, (256, 256)).clip(0, 255).astype(np.uint8)
    assert is_flat(np.zeros((64, 64), np.uint8))
    assert is_flat(noise)
    assert not is_flat(head(3))


def test_fingerprint_holds_what_the_single_functions_give():
    gray = head(4)
    print_ = fingerprint(gray)
    assert print_.pixel_sha256 == pixel_sha256(gray)
    assert print_.dhash.tolist() == difference_hash(gray).tolist()
    assert print_.dct_hash.tolist() == dct_hash(gray).tolist()
    assert print_.flat is False


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 20), st.integers(2, 40))
def test_banded_search_gives_the_pairs_of_brute_force(seed, distance, n):
    rng = np.random.default_rng(seed)
    base = random_hashes(rng, n)
    near = with_bits_flipped(base[rng.integers(0, n, n)], rng, distance + 2)
    hashes = np.unique(np.concatenate([base, near]), axis=0)
    assert as_set(near_duplicate_pairs(hashes, distance)) == brute_force_pairs(hashes, distance)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(1, 5), st.integers(1, 8))
def test_crowded_bands_connect_the_same_rows_with_true_pairs(seed, distance, sources, crowd):
    rng = np.random.default_rng(seed)
    base = random_hashes(rng, sources)
    hashes = with_bits_flipped(base[rng.integers(0, sources, 60)], rng, distance + 3)
    pairs = as_set(near_duplicate_pairs(hashes, distance, crowd=crowd))
    truth = brute_force_pairs(hashes, distance)
    assert pairs <= truth
    assert components(60, pairs) == components(60, truth)


def test_copies_of_one_hash_are_paired_with_its_first_row():
    one, other = random_hashes(np.random.default_rng(0), 2)
    hashes = np.stack([other, one, one, other, one])
    assert as_set(near_duplicate_pairs(hashes)) == {(0, 3), (1, 2), (1, 4)}


def test_no_hashes_have_no_pairs():
    assert near_duplicate_pairs(np.empty((0, 4), np.uint64)).shape == (0, 2)


def test_impossible_distances_and_shapes_are_refused():
    with pytest.raises(UsageError, match="max_distance 64"):
        near_duplicate_pairs(np.zeros((2, 4), np.uint64), 64)
    with pytest.raises(UsageError, match=r"\(2, 3\) are not \(n, 4\)"):
        near_duplicate_pairs(np.zeros((2, 3), np.uint64))


def test_five_thousand_variants_of_one_hash_end_in_one_group_without_all_their_pairs():
    rng = np.random.default_rng(0)
    hashes = with_bits_flipped(np.repeat(random_hashes(rng, 1), 5000, axis=0), rng, 6)
    pairs = near_duplicate_pairs(hashes)
    assert set(connected_rows(5000, pairs).tolist()) == {0}
    assert len(pairs) < 5000 * 5000 / 2 / 20


def test_a_hundred_thousand_hashes_are_searched_in_seconds_and_no_planted_copy_is_missed():
    rng = np.random.default_rng(0)
    base = random_hashes(rng, 95_000)
    source = rng.integers(0, len(base), 5000)
    hashes = np.concatenate([base, with_bits_flipped(base[source], rng, 6)])
    start = time.perf_counter()
    pairs = as_set(near_duplicate_pairs(hashes))
    assert time.perf_counter() - start < 20
    assert {(int(i), 95_000 + copy) for copy, i in enumerate(source)} <= pairs


def test_groups_join_exact_and_near_copies_transitively_and_number_by_appearance():
    rng = np.random.default_rng(0)
    a, b, c = random_hashes(rng, 3)
    near_a = a ^ np.array([0b111111, 0, 0, 0], np.uint64)
    nearer_still = near_a ^ np.array([0, 0b111111, 0, 0], np.uint64)
    groups = duplicate_groups(
        ["p", "q", "r", "q", "s", "t"], np.stack([b, a, near_a, c, nearer_still, c])
    )
    assert groups.tolist() == [0, 1, 1, 1, 1, 1]
    assert duplicate_groups(list("pqrqst"), None).tolist() == [0, 1, 2, 1, 3, 4]


def test_max_distance_is_inclusive():
    a = random_hashes(np.random.default_rng(0), 1)[0]
    hashes = np.stack([a, a ^ np.array([0, 0, 0, 0b1111111], np.uint64)])
    assert duplicate_groups(["p", "q"], hashes, 6).tolist() == [0, 1]
    assert duplicate_groups(["p", "q"], hashes, 7).tolist() == [0, 0]


def test_undecodable_scans_stay_alone():
    a = random_hashes(np.random.default_rng(0), 1)[0]
    assert duplicate_groups([None, None, "p"], np.stack([a, a, a])).tolist() == [0, 1, 2]


def test_flat_images_join_by_exact_pixels_only():
    black = np.zeros((64, 64), np.uint8)
    almost = black.copy()
    almost[3, 3] = 1
    prints = [fingerprint(image) for image in (black, almost, black)]
    hashes = np.stack([p.dhash for p in prints])
    digests = [p.pixel_sha256 for p in prints]
    assert duplicate_groups(digests, hashes).tolist() == [0, 1, 0]

    a = random_hashes(np.random.default_rng(0), 1)[0]
    flat = np.array([True, False, False])
    assert duplicate_groups(["p", "q", "r"], np.stack([a, a, a]), flat=flat).tolist() == [0, 1, 1]


def test_a_column_of_another_length_is_refused():
    with pytest.raises(UsageError, match="dhashes has 2 rows for 1 scans"):
        duplicate_groups(["p"], np.zeros((2, 4), np.uint64))


def test_catalogs_without_scans_have_no_groups():
    assert duplicate_groups([], np.empty((0, 4), np.uint64)).tolist() == []


def test_first_with_same_value_leaves_none_alone():
    assert first_with_same_value(["a", None, "a", None, "b"]).tolist() == [0, 1, 0, 3, 4]


def test_connected_rows_are_numbered_by_first_appearance():
    assert connected_rows(5, np.array([[4, 1], [3, 0]])).tolist() == [0, 1, 2, 0, 1]


def test_dct_hashes_find_darkened_copies_that_difference_hashes_miss():
    originals = [head(seed) for seed in range(20)]
    images = originals + [brightened(image, 1.0, -20) for image in originals]
    prints = [fingerprint(image) for image in images]
    digests = [p.pixel_sha256 for p in prints]
    dhashes = np.stack([p.dhash for p in prints])
    dct_hashes = np.stack([p.dct_hash for p in prints])
    by_difference = duplicate_groups(digests, dhashes)
    by_both = duplicate_groups(digests, dhashes, dct_hashes=dct_hashes)
    assert np.count_nonzero(by_difference[:20] == by_difference[20:]) < 10
    assert by_both[:20].tolist() == by_both[20:].tolist()
    assert by_both.max() == 19


@pytest.fixture(scope="module")
def mri4(real_data):
    paths = sorted((real_data / "mri4").rglob("*.jpg"))
    images = [
        cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
        for path in paths
    ]
    return paths, images, [fingerprint(image) for image in images]


def mixed(groups, labels):
    classes = {}
    for group, label in zip(groups.tolist(), labels, strict=True):
        classes.setdefault(group, set()).add(label)
    return sum(len(members) > 1 for members in classes.values())


@pytest.mark.real
@pytest.mark.slow
def test_the_public_set_has_the_copies_that_were_counted(mri4):
    paths, _, prints = mri4
    labels = [path.parent.name for path in paths]
    digests = [p.pixel_sha256 for p in prints]
    dhashes = np.stack([p.dhash for p in prints])
    flat = np.array([p.flat for p in prints])
    in_training = {d for d, p in zip(digests, paths, strict=True) if "Training" in p.parts}
    testing = [d for d, p in zip(digests, paths, strict=True) if "Testing" in p.parts]
    assert len(digests) - len(set(digests)) == 325
    assert (sum(d in in_training for d in testing), len(testing)) == (206, 314)

    groups = duplicate_groups(digests, dhashes, flat=flat)
    assert (groups.max() + 1, mixed(groups, labels)) == (2322, 2)

    dct_hashes = np.stack([p.dct_hash for p in prints])
    wider = duplicate_groups(digests, dhashes, flat=flat, dct_hashes=dct_hashes)
    assert 2310 <= wider.max() + 1 <= 2322
    assert mixed(wider, labels) == 2


@pytest.mark.real
@pytest.mark.slow
def test_of_200_planted_copies_at_least_95_percent_are_found(mri4):
    _, images, prints = mri4
    rng = np.random.default_rng(0)
    source = rng.choice(len(images), 200, replace=False)
    copies = []
    for i in source:
        image = brightened(images[i], rng.uniform(0.8, 1.25), rng.uniform(-20, 20))
        copies.append(jpeg(resized(image, rng.uniform(0.5, 1.5)), int(rng.integers(50, 91))))
    prints = prints + [fingerprint(copy) for copy in copies]
    groups = duplicate_groups(
        [p.pixel_sha256 for p in prints],
        np.stack([p.dhash for p in prints]),
        dct_hashes=np.stack([p.dct_hash for p in prints]),
    )
    assert np.mean(groups[source] == groups[len(images) :]) >= 0.95


@pytest.mark.real
@pytest.mark.slow
def test_the_official_split_of_the_public_set_leaks(mri4):
    paths, _, prints = mri4
    digests = [p.pixel_sha256 for p in prints]
    official = [path.parent.parent.name for path in paths]
    groups = duplicate_groups(digests, None)
    report = check_leaks(official, groups, digests)
    assert report.leaky
    assert report.pixel_rows["Testing"] == 206
    labels = [path.parent.name for path in paths]
    ours = grouped_split(labels, groups, {"train": 0.7, "val": 0.2, "test": 0.1}, seed=0)
    assert not check_leaks(ours.tolist(), groups, digests).leaky
