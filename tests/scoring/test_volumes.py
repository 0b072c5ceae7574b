"""How a volume is cut: columns of the catalog, and folders from before there were these columns."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.redaction import redact_catalog
from braintumor_ray.catalog.schema import read_catalog, scan_id, write_catalog
from braintumor_ray.decode.files import files_of, locations
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.decode.types import VolumeOptions
from braintumor_ray.models.domain import ArchiveReference
from braintumor_ray.predict.results import read_results, results_folder
from braintumor_ray.scoring.plan import make_plan, write_work
from braintumor_ray.scoring.scans import open_scans
from braintumor_ray.scoring.summary import RowStatistics
from tests.decode.mutations import slice_like
from tests.decode.volume_files import as_axial_volume, dicom_bytes, nifti_bytes
from tests.scoring.test_retry_and_redaction import KEY, night

COLUMNS = ["volume_plane", "volume_index"]
STACK = np.stack([slice_like(np.random.default_rng(k), 24, 30) for k in range(4)])
CUTS = [VolumeOptions(), VolumeOptions("sagittal"), VolumeOptions("coronal", 1)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A volume of two time points, and a DICOM series."""
    folder = tmp_path_factory.mktemp("archive")
    volume = as_axial_volume(STACK)
    both = np.stack([volume, volume[::-1]], axis=3)
    (folder / "head.nii.gz").write_bytes(nifti_bytes(both))
    (folder / "series.dcm").write_bytes(dicom_bytes(STACK))
    return folder


def catalogs(archive):
    """The archive, its volume cut in three ways, as three nights would list it."""
    identity = IdentityHash(b"a key of our own")
    return [load_catalog(archive, CatalogOptions(identity=identity, volumes=v)) for v in CUTS]


def without_columns(path):
    """Make a stored catalog as it was before the columns."""
    pq.write_table(pq.read_table(path).drop_columns(COLUMNS), path)


def before_the_columns(folder):
    """Make a results folder as it was before the columns."""
    for path in Path(folder.location, "catalogs").rglob("*.parquet"):
        without_columns(path)


@pytest.fixture
def folder(tmp_path):
    return results_folder(tmp_path / "results")


def test_columns_say_how_a_volume_is_cut_and_are_null_for_other_files(archive):
    for catalog, cut in zip(catalogs(archive), CUTS, strict=True):
        for row in catalog.to_pylist():
            volume = row["format"] == "nifti"
            expected = (cut.plane, cut.volume) if volume else (None, None)
            assert tuple(row[name] for name in COLUMNS) == expected


def test_uri_path_and_id_of_a_scan_are_what_they_were(archive):
    """Numbers and spellings as computed by the release before the columns."""
    axial, sagittal, coronal = (
        next(row for row in catalog.to_pylist() if row["format"] == "nifti")
        for catalog in catalogs(archive)
    )
    assert axial["path"] == "head.nii.gz"
    assert sagittal["path"] == "head.nii.gz#plane=sagittal&volume=0"
    assert coronal["uri"] == f"{archive}/head.nii.gz#plane=coronal&volume=1"
    mtime = 1_700_000_000_000_000
    assert scan_id("nii/a.nii.gz#plane=sagittal&volume=0", 7, 12345, mtime) == 2994961544040926247
    assert scan_id("nii/a.nii.gz", 7, 12345, mtime) == -707897065335945240
    for row in (axial, sagittal, coronal):
        found = int(row["mtime"].timestamp() * 1_000_000)
        assert row["scan_id"] == scan_id(row["path"], row["frame"], row["size"], found)


def test_a_catalog_without_the_columns_is_cut_as_it_says(archive, tmp_path):
    stored = tmp_path / "old.parquet"
    for catalog in catalogs(archive):
        write_catalog(catalog, stored)
        without_columns(stored)
        for old in (read_catalog(stored), open_scans(str(stored)).read()):
            assert {*COLUMNS} <= {*old.column_names}
            assert files_of(old) == files_of(catalog)
        assert hash_scans(old).equals(hash_scans(catalog))


@pytest.mark.parametrize("redaction", [None, KEY])
def test_a_night_after_the_change_knows_the_scans_of_before(archive, folder, redaction):
    before = catalogs(archive)
    counts = [night(folder, catalog, redaction).work.num_rows for catalog in before]
    assert counts == [4 + 4, 30, 24]  # of the second and third the series is known
    before_the_columns(folder)
    for catalog in before:
        assert night(folder, catalog, redaction).remaining == 0
    assert read_results(folder.location, ["scan_id"]).num_rows == sum(counts)


def test_what_an_interrupted_night_of_before_has_done_is_carried_on(archive, folder):
    axial, sagittal, _ = catalogs(archive)
    plan = make_plan(folder, sagittal, [], "fp")
    write_work(plan, "one")
    for part in (plan.generation.rows, plan.generation.checkpoints):
        Path(folder.at(part)).mkdir(parents=True)
    done = sagittal.slice(0, 3).select(["scan_id", "uri", "frame"])
    pq.write_table(done.select(["scan_id"]), folder.at(plan.generation.checkpoints, "x_0.parquet"))
    pq.write_table(done, folder.at(plan.generation.rows, "x_0-0.parquet"))
    before_the_columns(folder)
    carried = make_plan(folder, axial, [], "fp").work.carried
    assert carried["uri"].to_pylist() == done["uri"].to_pylist()
    assert carried["volume_plane"].to_pylist() == ["sagittal"] * 3


def test_frames_of_one_file_are_one_group_however_it_is_cut(archive, folder):
    """Rows of results have no such columns; their URIs tell the file."""
    for catalog in catalogs(archive):
        night(folder, catalog)
    rows = read_results(folder.location, ["uri", "frame"])
    assert {*locations(rows)} == {f"{archive}/head.nii.gz", f"{archive}/series.dcm"}


def test_a_redacted_catalog_keeps_the_planes_apart(archive):
    _, sagittal, coronal = (redact_catalog(catalog, KEY) for catalog in catalogs(archive))
    assert {*sagittal["volume_plane"].drop_null().to_pylist()} == {"sagittal"}
    volumes = [
        {row["uri"] for row in catalog.to_pylist() if row["format"] == "nifti"}
        for catalog in (sagittal, coronal)
    ]
    assert [len(uris) for uris in volumes] == [1, 1]
    assert not volumes[0] & volumes[1]


def test_slices_of_one_volume_are_one_scan_to_the_comparison_with_training():
    features = np.exp(np.random.default_rng(0).normal(0, 0.5, (400, 40)))
    decided = np.arange(400) % 2 == 0
    reference = ArchiveReference.fit(features, decided)
    statistics = RowStatistics(SimpleNamespace(archive=reference))
    nothing = pa.nulls(400, pa.string())
    columns = {
        **dict.fromkeys(statistics.columns, nothing),
        "status": pa.array(["ok"] * 400),
        "out_of_domain": pa.array([False] * 400),
        "entropy": pa.array([0.5] * 400),
        "decision": pa.array(decided),
        "domain_coordinates": pa.array(reference.coordinates(features, decided).tolist()),
        "uri": pa.array([f"file:///a/{n // 10}.nii.gz" for n in range(400)]),
        "frame": pa.array(np.arange(400) % 10),
    }
    statistics.add(pa.table(columns))
    assert statistics.shift.independent == 40
