"""Catalogs in parts, and comparing ids against NumPy's own ways."""

import gc
import os
import shutil
import tempfile

import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.listing import left_out_of
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.errors import CatalogError
from braintumor_ray.scoring import scans as module
from braintumor_ray.scoring.scans import are_distinct, are_in, open_scans, places_in
from tests.builders import write_archive


@pytest.mark.parametrize(("count", "others"), [(0, 0), (0, 5), (5, 0), (1, 1), (300, 200)])
def test_are_in_is_isin(count, others):
    random = np.random.default_rng(count + others)
    ids, among = (random.integers(-50, 50, size) for size in (count, others))
    assert are_in(ids, np.sort(among)).tolist() == np.isin(ids, among).tolist()
    assert are_in(ids, np.sort(among)).dtype == bool


@pytest.mark.parametrize("ids", [[], [3], [3, 1, 2], [3, 1, 3], [-1, -1]])
def test_are_distinct(ids):
    assert are_distinct(np.array(ids, np.int64)) == (len(set(ids)) == len(ids))


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where temporary files go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_folder_has_the_rows_of_its_catalog_in_parts_and_leaves_no_file(
    tmp_path, scratch, monkeypatch
):
    monkeypatch.setattr(module, "ROWS_PER_PART", 5)
    archive = tmp_path / "archive"
    first = write_archive(archive, 12)[0]
    shutil.copy2(first, archive / "old.zip")
    options = CatalogOptions(identity=IdentityHash(b"secret"))
    whole, scans = load_catalog(archive, options), open_scans(str(archive), options)
    assert list(scratch.iterdir()) == []
    assert scans.num_rows == 12
    assert scans.read().equals(whole.replace_schema_metadata(None), check_metadata=True)
    assert scans.left_out == left_out_of(whole.schema)
    pairs = zip(scans.parts(), scans.parts(["path"]), strict=True)  # two readers at a time
    assert [part.num_rows for part, paths in pairs if part["path"] == paths["path"]] == [5, 5, 2]


def test_the_catalog_of_a_folder_is_not_kept_in_memory(tmp_path, scratch):
    archive = tmp_path / "archive"
    first = write_archive(archive, 1)[0]
    for number in range(1000):
        os.link(first, archive / f"{number:0100d}.png")
    gc.collect()
    before = pa.total_allocated_bytes()
    scans = open_scans(str(archive), CatalogOptions(probe_headers=False))
    gc.collect()
    assert pa.total_allocated_bytes() - before < 20 * 1001  # a row of these takes 400
    assert len(scans.ids) == 1001


def test_a_folder_without_scans_is_refused(tmp_path, scratch):
    with pytest.raises(CatalogError, match="holds no files that could be scans"):
        open_scans(str(tmp_path))
    assert list(scratch.iterdir()) == []


def test_places_are_those_of_a_search_whatever_the_order(monkeypatch):
    monkeypatch.setattr(module, "SEARCHED", 7)
    random = np.random.default_rng(3)
    ordered, ids = np.sort(random.integers(0, 99, 30)), random.integers(-9, 120, 50)
    there = np.isin(ids, ordered)
    assert (places_in(ordered, ids)[there] == np.searchsorted(ordered, ids[there])).all()
    assert (are_in(ids, ordered) == there).all()
