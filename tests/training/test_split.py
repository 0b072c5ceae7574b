"""Which split a run follows where catalog and options each name one."""

import pyarrow as pa
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.catalog.sources import combined
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.errors import UsageError
from braintumor_ray.localization.outlines import TruthError
from braintumor_ray.training.options import SplitOptions
from braintumor_ray.training.run import train
from braintumor_ray.training.split import split_catalog, with_splits
from tests.builders import write_archive
from tests.training.test_run import options

FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A catalog of a source with Training and Testing folders."""
    folder = tmp_path_factory.mktemp("official")
    write_archive(folder / "Training", 32)
    write_archive(folder / "Testing", 16, seed=1)
    return load_catalog(folder)


def assigned(catalog, by):
    labels = catalog["label"].to_pylist()
    found, _ = with_splits(
        catalog, hash_scans(catalog), ClassMap.parse(None, labels), SplitOptions(FRACTIONS, by)
    )
    return found["split"].to_pylist()


def with_column(catalog, values):
    return catalog.append_column("split", pa.array(values, pa.string()))


def test_an_official_split_is_refused_where_the_catalog_has_another(official):
    own = split_catalog(official, FRACTIONS, seed=0)
    with pytest.raises(UsageError, match=r"--split-by official: .*column 'split' .* drop"):
        assigned(own, "official")


def test_it_is_refused_before_anything_is_decoded(official, tmp_path):
    own = split_catalog(official, FRACTIONS, seed=0)
    with pytest.raises(UsageError, match="--split-by official"):
        train(own, options(tmp_path / "run", split_by="official"), str)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lease.lock"]


def test_a_source_without_official_folders_is_refused_before_too(tmp_path):
    write_archive(tmp_path / "a", 8)
    catalog = load_catalog(tmp_path / "a")
    with pytest.raises(UsageError, match="no Training and Testing folders"):
        train(catalog, options(tmp_path / "run", split_by="official"), str)
    with pytest.raises(UsageError, match="no Training and Testing folders"):
        assigned(with_column(catalog, ["train"] * catalog.num_rows), "official")


def test_a_catalog_whose_split_agrees_with_the_official_one_is_followed(official):
    first = assigned(official, "official")  # validation is taken from the training part
    assert {"train", "val", "test"} == set(first)
    assert assigned(with_column(official, first), "official") == first


def test_truth_that_two_scans_share_is_refused_before_anything_is_decoded(tmp_path):
    """The truth is of one of two sources; whether it is told by the paths depends on no split."""
    write_archive(tmp_path / "a", 12)
    one = load_catalog(tmp_path / "a")
    both = combined({"a": one, "b": one})
    path = one["path"][0].as_py()
    (tmp_path / "boxes.csv").write_text(f"path,x_min,y_min,x_max,y_max\n{path},0,0,1,1\n")
    split = pa.array(["train"] * 12 + ["test"] * 12)
    chosen = options(tmp_path / "run", truth=str(tmp_path / "boxes.csv"))
    with pytest.raises(TruthError, match=rf"'a/{path}' and 'b/{path}' both"):
        train(both.append_column("split", split), chosen, str)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lease.lock"]


def test_without_a_choice_the_catalogs_own_split_decides(official):
    own = split_catalog(official, FRACTIONS, seed=0)
    assert assigned(own, "group") == own["split"].to_pylist()


def test_the_runs_catalog_keeps_perceptual_hashes(official):
    own = split_catalog(official, FRACTIONS, seed=0)
    assert {len(packed) for packed in own["hashes"].to_pylist()} == {65}
