"""Which split a run follows where catalog and options each name one."""

import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.catalog.sources import combined
from braintumor_ray.decode.hashes import HASHES
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.errors import UsageError
from braintumor_ray.evaluation.selection import clusters
from braintumor_ray.localization.outlines import TruthError
from braintumor_ray.training.options import SplitOptions
from braintumor_ray.training.run import train
from braintumor_ray.training.split import split_catalog, with_columns, with_splits
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


def slices(kind):
    """Twelve volumes of five slices, of two classes, without patients; no two slices are alike."""
    volumes = [f"v{n}" for n in range(12) for _ in range(5)]
    frames = list(range(5)) * 12
    of_series = kind != "file"
    paths = [
        f"{v}/{f}.dcm" if of_series else f"{v}.nii" for v, f in zip(volumes, frames, strict=True)
    ]
    nothing = pa.nulls(60, pa.string())
    catalog = {
        "scan_id": pa.array(range(60), pa.int64()),
        "path": pa.array(paths),
        "uri": pa.array([f"file:///a/{path}" for path in paths]),
        "frame": pa.array([0] * 60 if of_series else frames, pa.int32()),
        "label": pa.array(["glioma_tumor"] * 30 + ["no_tumor"] * 30),
        **dict.fromkeys(("official_split", "patient_key", "study_key", "series_key"), nothing),
    }
    if of_series:
        catalog[kind] = pa.array(volumes)
    hashes = {
        "scan_id": catalog["scan_id"],
        "status": pa.array(["ok"] * 60),
        "reason": nothing,
        "pixel_sha256": pa.array([f"{n:064x}" for n in range(60)]),
        HASHES: pa.nulls(60, pa.binary()),
    }
    return pa.table(catalog), pa.table(hashes), volumes


@pytest.mark.parametrize("known", [[], ["patient_key"], ["patient_key", "study_key"]])
@pytest.mark.parametrize("kind", ["file", "series_key", "study_key"])
def test_slices_of_one_volume_are_on_one_side_though_no_patient_is_known(kind, known):
    catalog, hashes, volumes = slices(kind)
    for step, name in enumerate((n for n in known if n != kind), start=2):  # of some slices only
        some = [f"p{v}" if n % step else None for n, v in enumerate(volumes)]
        catalog = with_columns(catalog, {name: pa.array(some)})
    classes = ClassMap.parse(None, catalog["label"].to_pylist())
    found, _ = with_splits(catalog, hashes, classes, SplitOptions(FRACTIONS))
    places = {*zip(volumes, found["split"].to_pylist(), strict=True)}
    assert len(places) == len({*volumes})
    groups, _ = clusters(catalog, np.arange(60))
    assert groups.tolist() == np.repeat(np.arange(12), 5).tolist()
