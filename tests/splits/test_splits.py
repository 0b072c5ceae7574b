"""Splits share the classes out and never separate a group."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braintumor_ray.errors import UsageError
from braintumor_ray.splits.splits import (
    LeakReport,
    check_leaks,
    grouped_folds,
    grouped_split,
    merge_groups,
)

FRACTIONS = {"train": 0.7, "val": 0.2, "test": 0.1}
CLASSES = ["glioma", "meningioma", "none"]


@st.composite
def catalogs(draw):
    """Labels (some None), groups of mixed sizes and classes, at least three groups a class."""
    labels, groups = [], []
    for name in CLASSES:
        for group in range(draw(st.integers(6, 15))):
            size = draw(st.integers(1, 4))
            labels += [name] * size
            groups += [f"{name}{group}"] * size
    for row in draw(st.lists(st.integers(0, len(labels) - 1), max_size=3)):
        labels[row] = None
    _, numbers = np.unique(groups, return_inverse=True)
    order = draw(st.permutations(range(len(labels))))
    return [labels[i] for i in order], numbers[list(order)]


def splits_of_groups(split, groups):
    where = {}
    for name, group in zip(split, groups, strict=True):
        if name is not None:
            where.setdefault(int(group), set()).add(name)
    return where


@settings(max_examples=50, deadline=None)
@given(catalogs(), st.integers(0, 2**32 - 1))
def test_no_group_is_in_two_splits_and_every_labeled_scan_in_one(catalog, seed):
    labels, groups = catalog
    split = grouped_split(labels, groups, FRACTIONS, seed, allow_missing=True)
    assert all(len(names) == 1 for names in splits_of_groups(split, groups).values())
    assert [name is None for name in split] == [label is None for label in labels]
    assert {name for name in split if name is not None} <= set(FRACTIONS)


@settings(max_examples=50, deadline=None)
@given(catalogs(), st.integers(0, 2**32 - 1), st.randoms())
def test_the_same_seed_gives_the_same_split_in_any_order_of_rows(catalog, seed, random):
    labels, groups = catalog
    keys = [f"scan-{row}" for row in range(len(labels))]
    first = grouped_split(labels, groups, FRACTIONS, seed, keys=keys, allow_missing=True)
    order = list(range(len(labels)))
    random.shuffle(order)
    again = grouped_split(
        [labels[i] for i in order],
        1000 - groups[order],
        FRACTIONS,
        seed,
        keys=[keys[i] for i in order],
        allow_missing=True,
    )
    assert again.tolist() == first[order].tolist()


def test_another_seed_gives_another_split():
    labels, groups = ["a"] * 100, np.arange(100)
    first, other = (grouped_split(labels, groups, FRACTIONS, seed).tolist() for seed in (0, 1))
    assert first != other


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(3, 80), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_groups_of_one_scan_come_within_two_scans_of_the_fractions(sizes, seed):
    labels = np.repeat([f"class{i}" for i in range(len(sizes))], sizes)
    split = grouped_split(labels.tolist(), np.arange(len(labels)), FRACTIONS, seed)
    for i, size in enumerate(sizes):
        for name, share in FRACTIONS.items():
            count = np.count_nonzero(split[labels == f"class{i}"] == name)
            assert count >= 1
            assert abs(count - share * size) <= 2


def test_one_large_patient_does_not_bend_the_fractions():
    groups = np.concatenate([np.zeros(100, int), np.arange(1, 101)])
    split = grouped_split(["a"] * 200, groups, {"train": 0.6, "test": 0.4}, seed=0)
    assert np.count_nonzero(split == "train") == 120


def test_groups_of_several_classes_are_balanced_and_kept_together():
    labels = ["a", "b"] * 50 + ["a"] * 50
    groups = np.concatenate([np.repeat(np.arange(50), 2), np.arange(50, 100)])
    split = grouped_split(labels, groups, FRACTIONS, seed=3)
    assert all(len(names) == 1 for names in splits_of_groups(split, groups).values())
    is_b = np.array(labels) == "b"
    for name, share in FRACTIONS.items():
        assert abs(np.count_nonzero(split[is_b] == name) - 50 * share) <= 2
        assert abs(np.count_nonzero(split[~is_b] == name) - 100 * share) <= 2


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.7, "val": 0.2}, "sum to 0.9"),
        ({"train": 1.2, "test": -0.2}, "not all positive"),
        ({"train": 1.0, "test": 0.0}, "not all positive"),
        ({"train": float("nan")}, "not all positive"),
        ({}, "not all positive"),
    ],
)
def test_impossible_fractions_are_refused(fractions, message):
    with pytest.raises(UsageError, match=message):
        grouped_split(["a"] * 10, np.arange(10), fractions, seed=0)


def test_fractions_may_be_rounded():
    thirds = {"one": 0.3333333, "two": 0.3333333, "three": 0.3333334}
    split = grouped_split(["a"] * 30, np.arange(30), thirds, seed=0)
    assert [np.count_nonzero(split == name) for name in thirds] == [10, 10, 10]


def test_a_class_with_too_few_groups_is_named_with_its_counts():
    labels = ["a"] * 20 + ["rare"] * 5
    groups = np.concatenate([np.arange(20), [20, 20, 20, 20, 21]])
    with pytest.raises(UsageError, match=r"class rare has 2 groups for 3 splits .*test=0"):
        grouped_split(labels, groups, FRACTIONS, seed=0)
    split = grouped_split(labels, groups, FRACTIONS, seed=0, allow_missing=True)
    assert set(split[20:24]) == {"train"}


def test_a_rare_class_with_just_enough_groups_reaches_every_split():
    labels = ["a"] * 200 + ["rare"] * 3
    split = grouped_split(labels, np.arange(203), FRACTIONS, seed=0)
    assert sorted(split[200:]) == ["test", "train", "val"]


def test_keys_must_be_distinct_and_columns_of_one_length():
    with pytest.raises(UsageError, match="1 keys repeat"):
        grouped_split(["a", "a"], np.arange(2), {"all": 1.0}, seed=0, keys=["x", "x"])
    with pytest.raises(UsageError, match="labels 2, groups 3"):
        grouped_split(["a", "a"], np.arange(3), {"all": 1.0}, seed=0)


def test_a_catalog_without_labels_has_no_splits():
    assert grouped_split([None, None], np.arange(2), FRACTIONS, seed=0).tolist() == [None, None]


@settings(max_examples=30, deadline=None)
@given(catalogs(), st.integers(2, 4), st.integers(0, 2**32 - 1), st.randoms())
def test_folds_keep_groups_together_in_any_order_of_rows(catalog, k, seed, random):
    labels, groups = catalog
    keys = list(range(len(labels)))
    folds = grouped_folds(labels, groups, k, seed, keys=keys, allow_missing=True)
    named = [None if fold < 0 else str(fold) for fold in folds]
    assert all(len(names) == 1 for names in splits_of_groups(named, groups).values())
    assert [fold < 0 for fold in folds] == [label is None for label in labels]
    assert set(folds[folds >= 0]) == set(range(k))
    order = list(keys)
    random.shuffle(order)
    again = grouped_folds(
        [labels[i] for i in order], 1000 - groups[order], k, seed, keys=order, allow_missing=True
    )
    assert again.tolist() == folds[order].tolist()


def test_folds_hold_every_class():
    labels = np.array(["a"] * 40 + ["b"] * 20)
    folds = grouped_folds(labels.tolist(), np.arange(60), 5, seed=0)
    for fold in range(5):
        assert np.count_nonzero(labels[folds == fold] == "a") == 8
        assert np.count_nonzero(labels[folds == fold] == "b") == 4


def test_folds_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="1 folds"):
        grouped_folds(["a"] * 4, np.arange(4), 1, seed=0)
    with pytest.raises(UsageError, match="5 folds of 4"):
        grouped_folds(["a"] * 4, np.arange(4), 5, seed=0)
    with pytest.raises(UsageError, match="class b has 1 groups for 2 folds"):
        grouped_folds(["a", "a", "b"], np.arange(3), 2, seed=0)


def test_patients_and_copies_join_transitively():
    patient = ["p1", "p1", "p2", None, "", None, ""]
    copies = np.array([0, 1, 1, 2, 3, 2, 4])
    assert merge_groups(patient, copies).tolist() == [0, 0, 0, 1, 2, 1, 3]


def test_leaks_are_counted_by_group_and_by_pixels():
    split = ["train", "train", "val", "test", "test", None]
    groups = np.array([0, 1, 1, 0, 2, 2])
    digests = ["a", "b", "c", "a", None, "b"]
    report = check_leaks(split, groups, digests)
    assert report == LeakReport(
        groups=2,
        pixel_images=1,
        group_rows={"test": 1, "train": 2, "val": 1},
        pixel_rows={"test": 1, "train": 1, "val": 0},
    )
    assert report.leaky
    assert "2 groups and 1 pixel-identical images" in report.describe()


def test_undecoded_scans_are_not_taken_for_copies():
    report = check_leaks(["train", "test"], np.array([0, 1]), [None, None])
    assert not report.leaky
    assert report.describe() == "no group and no pixel-identical image is in more than one split"


@settings(max_examples=30, deadline=None)
@given(catalogs(), st.integers(0, 2**32 - 1))
def test_a_grouped_split_has_no_leaks(catalog, seed):
    labels, groups = catalog
    split = grouped_split(labels, groups, FRACTIONS, seed, allow_missing=True)
    assert not check_leaks(split.tolist(), groups, [str(group) for group in groups]).leaky
