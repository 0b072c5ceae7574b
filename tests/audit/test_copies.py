"""Counting copies, on cases small enough to work out by hand."""

import numpy as np

from braintumor_ray.audit.copies import (
    Keys,
    across,
    conflicting_rows,
    mixed_keys,
    partner_before,
    shared_rows,
    split_codes,
    surplus,
)


def ints(*values):
    return np.array(values, dtype=np.int64)


def test_surplus_is_what_would_go_if_one_of_each_were_kept():
    assert surplus(ints(5, 5, 5, 7, 8, 8)) == 3


def test_unknown_keys_are_never_copies_of_each_other():
    assert surplus(ints(-1, -1, -1)) == 0
    assert partner_before(ints(-1, -1), ints(0, 1)).tolist() == [-1, -1]


def test_splits_come_in_the_order_in_which_they_are_used():
    names, codes = split_codes(["test", None, "extra", "train", "val"])
    assert names == ["train", "val", "test", "extra"]
    assert codes.tolist() == [2, -1, 3, 0, 1]


def test_a_row_is_paired_with_the_first_row_of_the_earliest_split():
    keys, splits = ints(4, 4, 4, 4, 9), ints(2, 1, 0, 0, 2)
    assert partner_before(keys, splits).tolist() == [2, 2, -1, -1, -1]


def test_rows_without_a_split_neither_leak_nor_are_leaked_to():
    assert partner_before(ints(4, 4), ints(-1, 1)).tolist() == [-1, -1]


def test_shared_rows_counts_rows_not_keys():
    keys, sides = ints(1, 1, 2, 1, 3), ints(1, 1, 1, 0, 0)
    assert shared_rows(keys, sides, side=1, other=0) == 2


def test_a_key_on_one_side_only_is_not_mixed():
    assert mixed_keys(ints(1, 1, 2, 2), ints(0, 1, 1, 1)).tolist() == [1]


def test_labels_conflict_inside_a_data_set_only():
    keys, labels = ints(1, 1, 2, 2), ints(0, 1, 0, 1)
    assert conflicting_rows(keys, labels, ints(0, 0, 0, 1)).tolist() == [True, True, False, False]


def test_across_compares_each_side_with_every_earlier_one():
    same = ints(1, 1, 1)
    rows = across(Keys(ints(-1, -1, -1), same, same), ints(0, 1, 2), ["train", "val", "test"])
    assert [(row["side"], row["also_in"]) for row in rows] == [
        ("val", "train"),
        ("test", "train"),
        ("test", "val"),
    ]
    assert {row["byte_identical"] for row in rows} == {0}
    assert {row["pixel_identical"] for row in rows} == {1}
