"""Training with labels of reviewers: test scans stay in test, new ones join training."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.reviewed import Reviewed, with_reviewed_labels
from braintumor_ray.decode.hashes import HASHES
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.splits.splits import grouped_folds
from braintumor_ray.training.options import SplitOptions
from braintumor_ray.training.run_data import class_map, is_learnt, named_catalog, source_classes
from braintumor_ray.training.split import with_columns, with_splits
from tests.builders import write_archive

SHARES = SplitOptions({"train": 0.6, "val": 0.2, "test": 0.2})


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviewed")
    write_archive(folder / "a", 40)
    catalog = load_catalog(folder / "a")
    labels = [None if n >= 36 else v for n, v in enumerate(catalog["label"].to_pylist())]
    catalog = replaced(catalog, "label", labels)
    hashes = hash_scans(catalog)
    return catalog, replaced(hashes, HASHES, [None] * 40)  # only equal pixels are copies


def split(archive, reviewed, chosen="", options=SHARES, *, cached=False):
    """Split by path of a run, which decodes what is learnt, or finds all decoded in a cache."""
    catalog, hashes = archive
    recipe = load_recipe("demo", [f"data.classes='{chosen}'"] if chosen else [])
    if reviewed:
        states = {(path, 0): Reviewed(path, label=label) for path, label in reviewed.items()}
        catalog, _ = with_reviewed_labels(catalog, states, "labels.jsonl")
    classes, before = class_map(catalog, recipe), source_classes(catalog, recipe)
    if not cached:
        hashes = hashes.filter(is_learnt(catalog, classes, before))
    found, _ = with_splits(catalog, hashes, classes, options, before)
    return dict(zip(found["path"].to_pylist(), found["split"].to_pylist(), strict=True)), found


def labeled(archive, label):
    catalog, _ = archive
    pairs = zip(catalog["path"].to_pylist(), catalog["label"].to_pylist(), strict=True)
    return [path for path, own in pairs if own == label]


def replaced(table, column, values):
    index = table.column_names.index(column)
    return table.set_column(index, column, pa.array(values, table.schema.field(index).type))


def test_no_label_moves_a_scan_to_another_split(archive):
    before, _ = split(archive, {})
    changed = [path for path, where in before.items() if where == "test"][:5]
    changed += [path for path, where in before.items() if where == "train"][:9]
    after, found = split(archive, dict.fromkeys(changed, "no_tumor"))
    assert after == before
    names = dict(zip(found["path"].to_pylist(), found["class_name"].to_pylist(), strict=True))
    assert {names[path] for path in changed} == {"no_tumor"}


def test_scans_without_a_label_join_training_or_their_copies(archive):
    catalog, hashes = archive
    new = labeled(archive, None)
    before, _ = split(archive, {})
    tested = next(path for path, where in before.items() if where == "test")
    patients = ["p" if path in (new[0], tested) else None for path in before]
    of_one = replaced(catalog, "patient_key", patients)
    after, _ = split((of_one, hashes), dict.fromkeys(new, "glioma_tumor"))
    assert after[new[0]] == after[tested]
    assert {after[path] for path in new[1:]} == {"train"}
    assert {before[path] for path in new} == {None}


@pytest.mark.parametrize("cached", [False, True])
def test_a_label_that_is_not_learnt_takes_a_scan_out_and_moves_no_other(archive, cached):
    chosen = "tumor=glioma_tumor+meningioma_tumor,no_tumor"
    before, _ = split(archive, {}, chosen)
    changed = labeled(archive, "glioma_tumor")[:3]
    after, _ = split(archive, dict.fromkeys(changed, "unusable"), chosen, cached=cached)
    assert after == before | dict.fromkeys(changed)
    assert {"train", "val", "test"} <= set(after.values())


def test_a_class_that_only_reviewers_know_moves_no_scan(archive):
    before, _ = split(archive, {}, "glioma_tumor,no_tumor")
    changed = labeled(archive, "glioma_tumor")[:5]
    reviewed = dict.fromkeys(changed, "edema")
    for chosen in ("glioma_tumor,no_tumor,edema", "tumor=glioma_tumor+edema,no_tumor"):
        assert split(archive, reviewed, chosen)[0] == before


def test_a_new_scan_whose_copies_are_in_several_splits_is_in_none(archive):
    """It would make copies of each other of what was split apart, and so another split."""
    catalog, hashes = archive
    before, _ = split(archive, {})
    paths, new = catalog["path"].to_pylist(), labeled(archive, None)[0]
    trained, tested = (next(p for p in paths if before[p] == s) for s in ("train", "test"))
    of_one = replaced(
        catalog, "patient_key", ["p" if path in (new, trained) else None for path in paths]
    )
    rows = [paths.index(tested if path == new else path) for path in paths]
    copied = replaced(hashes.take(rows), "scan_id", hashes["scan_id"].to_pylist())
    after, _ = split((of_one, copied), {new: "glioma_tumor"})
    assert after == before
    assert split((of_one, copied), {}, cached=True)[0] == before


def test_folders_that_classes_name_are_the_label_before_a_review_too(tmp_path):
    write_archive(tmp_path / "a", 12, classes=("1", "2"))
    catalog = load_catalog(tmp_path / "a")
    path = catalog["path"][0].as_py()
    reviewed, _ = with_reviewed_labels(catalog, {(path, 0): Reviewed(path, label="2")}, "l.jsonl")
    named = named_catalog(reviewed, load_recipe("demo", ['data.classes="1,2"']))
    assert named["label_of_source"].to_pylist() == ["1"] * 6 + ["2"] * 6
    assert named["label"].to_pylist() == ["2"] + ["1"] * 5 + ["2"] * 6


@pytest.mark.parametrize("by", ["group", "official"])
def test_a_new_scan_is_tested_where_the_catalog_or_the_source_says_so(archive, by):
    catalog, hashes = archive
    new = labeled(archive, None)
    own = [("test", "val", "train", None)[n % 4] for n in range(40)]
    column = "split" if by == "group" else "official_split"
    table = with_columns(catalog, {column: pa.array(own, pa.string())})
    options = replace(SHARES, by=by)
    before, _ = split((table, hashes), {}, options=options)
    after, _ = split((table, hashes), dict.fromkeys(new, "glioma_tumor"), options=options)
    assert after == before | dict(zip(new, ("test", "val", "train", "train"), strict=True))


def test_folds_test_new_scans_once_too(archive):
    catalog, hashes = archive
    new = labeled(archive, None)
    folds = grouped_folds(["a"] * 40, np.arange(40), 4, 0)
    tested = []
    for fold in range(4):
        own = ["test" if held == fold else "train" for held in folds]
        table = catalog.append_column("split", pa.array(own))
        after, _ = split((table, hashes), dict.fromkeys(new, "glioma_tumor"))
        tested += [path for path, where in after.items() if where == "test"]
    assert sorted(tested) == sorted(catalog["path"].to_pylist())
