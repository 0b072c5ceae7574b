"""Several sources as one catalog: scans stay apart, one can be held out, copies cannot leak."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.catalog.sources import combined, has_sources, source_names
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.evaluation.evaluate import EvaluateOptions, evaluate
from braintumor_ray.localization.truth import load_truth
from braintumor_ray.training.options import SplitOptions
from braintumor_ray.training.split import with_splits
from tests.builders import write_archive

FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sources with the same paths; one scan of `a` is a copy of one of `b`."""
    top = tmp_path_factory.mktemp("sources")
    for seed, name in enumerate("ab"):
        write_archive(top / name, 24, seed=seed)
    paths = load_catalog(top / "b")["path"].to_pylist()
    kept = top / "a" / paths[0].split("/")[0] / "copy.png"
    shutil.copy(top / "b" / paths[0], kept)
    return top


@pytest.fixture(scope="module")
def both(folders):
    return combined({name: load_catalog(folders / name) for name in "ab"})


def assigned(catalog, **options):
    classes = ClassMap.parse(None, catalog["label"].to_pylist())
    found, leaks = with_splits(
        catalog, hash_scans(catalog), classes, SplitOptions(FRACTIONS, **options)
    )
    assert not leaks.leaky
    return found


def test_scans_of_equal_paths_stay_apart(both, folders):
    assert both.num_rows == 49
    assert len(set(both["scan_id"].to_pylist())) == len(set(both["path"].to_pylist())) == 49
    sources = both["source"].to_pylist()
    assert all(
        p.startswith(f"{s}/") for p, s in zip(both["path"].to_pylist(), sources, strict=True)
    )
    assert has_sources(both)
    assert not has_sources(load_catalog(folders / "a"))
    again = combined({name: load_catalog(folders / name) for name in "ab"})
    assert again["scan_id"].equals(both["scan_id"])


def test_truth_of_a_source_is_found_by_the_end_of_the_path(both, tmp_path):
    path = next(path for path in both["path"].to_pylist() if path.startswith("a/"))
    inner = path.removeprefix("a/")
    (tmp_path / "boxes.csv").write_text(f"path,x_min,y_min,x_max,y_max\n{inner},0.1,0.1,0.4,0.4\n")
    assert load_truth(str(tmp_path / "boxes.csv")).find(path) == load_truth(
        str(tmp_path / "boxes.csv")
    ).find(inner)


def test_a_source_that_is_left_out_is_the_test_split_and_its_copies_are_in_none(both):
    found = assigned(both, leave_out="b")
    split = np.array(found["split"].to_pylist(), object)
    source = np.array(found["source"].to_pylist())
    assert set(split[source == "b"]) == {"test"}
    assert set(split[source == "a"]) == {"train", "val", None}
    (copy,) = np.flatnonzero([path.endswith("copy.png") for path in both["path"].to_pylist()])
    assert split[copy] is None
    assert (split[source == "a"] == None).sum() == 1  # noqa: E711 - of each element
    plain = assigned(both)
    assert {"a", "b"} == {
        s for s, where in zip(source, plain["split"].to_pylist(), strict=True) if where == "test"
    }


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"leave_out": "c"}, "the sources are a, b"),
        ({}, {"leave_out": "a", "by": "official"}, "--split-by official another one"),
        ({"split": "train"}, {"leave_out": "a"}, "catalog's 'split' another one"),
        ({"source": "a"}, {"leave_out": "a"}, "train on two or more"),
    ],
)
def test_what_cannot_be_left_out_is_refused(both, change, options, words):
    table = both
    for name, value in change.items():
        table = table.drop_columns([n for n in (name,) if n in table.column_names])
        table = table.append_column(name, pa.array([value] * table.num_rows))
    with pytest.raises(UsageError, match=words):
        assigned(table, **options)


def test_sources_that_do_not_fit_together_are_refused(folders):
    plain = load_catalog(folders / "a")
    split = plain.append_column("split", pa.array(["train"] * plain.num_rows))
    with pytest.raises(UsageError, match="source 'a' has a column 'split' and source 'b' has none"):
        combined({"a": split, "b": plain})
    with pytest.raises(CatalogError, match="listed twice"):
        combined({"a": pa.concat_tables([plain, plain]), "b": plain})


def test_names_are_the_last_part_and_the_whole_where_that_is_not_enough():
    assert source_names(["x/mri4/", "navoneel"]) == ["mri4", "navoneel"]
    assert source_names(["x/data", "y/data", "z"]) == ["x/data", "y/data", "z"]


def test_sources_are_a_subgroup_of_an_evaluation(both, bundle_path, tmp_path):
    from braintumor_ray.models.bundle import load_bundle

    names = load_bundle(bundle_path).fields.class_names
    labels = pa.array([names[i % len(names)] for i in range(both.num_rows)])
    table = both.set_column(both.schema.get_field_index("label"), "label", labels)
    options = EvaluateOptions(
        split="all", n_boot=10, report=False, heatmaps=False, device="cpu", precision="fp32"
    )
    found = evaluate(table, bundle_path, tmp_path / "both", options)
    assert [row["value"] for row in found["subgroups"]["source"]] == ["a", "b"]
    assert sum(row["n"] for row in found["subgroups"]["source"]) == found["n"]
