"""Training with labels of reviewers: test scans stay in test, new ones join training."""

import pyarrow as pa
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.reviewed import Reviewed, with_reviewed_labels
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.training.options import SplitOptions
from braintumor_ray.training.run_data import class_map, source_classes
from braintumor_ray.training.split import with_splits
from tests.builders import write_archive

SHARES = SplitOptions({"train": 0.6, "val": 0.2, "test": 0.2})


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviewed")
    write_archive(folder / "a", 40)
    catalog = load_catalog(folder / "a")
    labels = [None if n >= 36 else v for n, v in enumerate(catalog["label"].to_pylist())]
    catalog = catalog.set_column(
        catalog.column_names.index("label"), "label", pa.array(labels, pa.string())
    )
    return catalog, hash_scans(catalog)


def split(archive, reviewed):
    catalog, hashes = archive
    recipe = load_recipe("demo")
    if reviewed:
        states = {(path, 0): Reviewed(path, label=label) for path, label in reviewed.items()}
        catalog, _ = with_reviewed_labels(catalog, states, "labels.jsonl")
    classes = class_map(catalog, recipe)
    found, _ = with_splits(catalog, hashes, classes, SHARES, source_classes(catalog, recipe))
    return dict(zip(found["path"].to_pylist(), found["split"].to_pylist(), strict=True)), found


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
    new = [p for p, label in zip(catalog["path"].to_pylist(), catalog["label"].to_pylist(),
                                 strict=True) if label is None]  # fmt: skip
    before, _ = split(archive, {})
    tested = next(path for path, where in before.items() if where == "test")
    patients = ["p" if path in (new[0], tested) else None for path in before]
    of_one = catalog.set_column(
        catalog.column_names.index("patient_key"), "patient_key", pa.array(patients, pa.string())
    )
    after, _ = split((of_one, hashes), dict.fromkeys(new, "glioma_tumor"))
    assert after[new[0]] == after[tested]
    assert {after[path] for path in new[1:]} == {"train"}
    assert {before[path] for path in new} == {None}
