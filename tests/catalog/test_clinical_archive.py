"""A hospital's archive as rows: every file accounted for, and nobody's name in any of them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.schema import read_catalog, write_catalog
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.types import VolumeOptions
from braintumor_ray.errors import CatalogError
from braintumor_ray.scoring.decode_stage import DecodeStage
from braintumor_ray.scoring.options import DecodeSettings
from tests.decode.mutations import slice_like
from tests.decode.volume_files import (
    as_axial_volume,
    dicom_bytes,
    intact_volumes,
    mr_dataset,
    mutated_volumes,
    nifti_bytes,
    saved,
    without_preamble,
)

GRAY = slice_like(np.random.default_rng(3), 64, 48)
STACK = np.stack([slice_like(np.random.default_rng(k), 40, 50) for k in range(3)])
SQUARE = Preprocessing(32, "area", (0.5,) * 3, (0.25,) * 3)
KEYED = CatalogOptions(identity=IdentityHash(b"a key of our own"))


def write_files(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files:
        (folder / name).write_bytes(content)
    return folder


def decoded_rows(catalog):
    return DecodeStage(SQUARE, DecodeSettings(), (2, 2))(catalog)


def test_dicom_fills_the_catalog(tmp_path):
    tags = {"SeriesDescription": "t1 post", "PatientID": "P7"}
    write_files(tmp_path / "export", [("IM0001", dicom_bytes(STACK, **tags))])
    catalog = load_catalog(tmp_path / "export", KEYED)
    assert catalog["frame"].to_pylist() == [0, 1, 2]
    (row,) = {tuple(row.items()) for row in catalog.drop_columns(["frame", "scan_id"]).to_pylist()}
    row = dict(row)
    assert (row["format"], row["modality"], row["plane"]) == ("dicom", "MR", "axial")
    assert (row["sequence"], row["height"], row["width"]) == ("t1 post", 40, 50)
    assert row["patient_key"] == KEYED.identity("P7")
    assert row["study_key"] == KEYED.identity("1.2.3", "study")
    assert row["series_key"] == KEYED.identity("1.2.3.1", "series")
    assert row["sop_key"] == KEYED.identity("1.2.3.4", "sop")


def test_an_archive_with_ids_needs_a_key(tmp_path):
    write_files(tmp_path / "export", [("a.dcm", dicom_bytes(GRAY))])
    with pytest.raises(CatalogError, match="no key to hash them"):
        load_catalog(tmp_path / "export")


def test_a_patient_pattern_goes_before_the_tag(tmp_path):
    import re

    write_files(tmp_path / "sub-09", [("a.dcm", dicom_bytes(GRAY))])
    options = CatalogOptions(identity=KEYED.identity, patient_pattern=re.compile(r"sub-(\d+)"))
    (key,) = load_catalog(tmp_path, options)["patient_key"].to_pylist()
    assert key == KEYED.identity("09")


def test_planes_of_one_volume_are_different_scans(tmp_path):
    write_files(tmp_path / "nii", [("a.nii.gz", nifti_bytes(as_axial_volume(STACK)))])
    axial = load_catalog(tmp_path / "nii")
    sagittal = load_catalog(tmp_path / "nii", CatalogOptions(volumes=VolumeOptions("sagittal")))
    assert (axial.num_rows, sagittal.num_rows) == (3, 50)
    assert not set(axial["scan_id"].to_pylist()) & set(sagittal["scan_id"].to_pylist())
    assert set(sagittal["plane"].to_pylist()) == {"sagittal"}
    rows = decoded_rows(sagittal)
    assert {*rows["height"].drop_null().to_pylist()} == {3}
    assert {*rows["width"].drop_null().to_pylist()} == {40}


def test_catalogs_from_before_these_columns_can_be_read(tmp_path):
    write_files(tmp_path / "export", [("a.dcm", dicom_bytes(GRAY))])
    catalog = load_catalog(tmp_path / "export", KEYED)
    old = tmp_path / "old.parquet"
    write_catalog(catalog.drop_columns(["modality", "plane", "sequence"]), old)
    assert read_catalog(old)["modality"].null_count == 1


def test_350_files_of_which_300_are_damaged_are_accounted_for(tmp_path):
    intact, damaged = intact_volumes(0, 50), mutated_volumes(1, 300)
    catalog = load_catalog(write_files(tmp_path / "archive", intact + damaged), KEYED)
    assert len(set(catalog["path"].to_pylist())) == 350
    rows = decoded_rows(catalog)
    assert rows.num_rows == catalog.num_rows
    assert set(rows["status"].to_pylist()) <= {"ok", "quarantined", "skipped"}
    unscored = [row for row in rows.to_pylist() if row["status"] != "ok"]
    assert all(row["reason"] for row in unscored)
    assert len(unscored) > 100
    good = {name for name, _ in intact}
    ends = zip(catalog["path"].to_pylist(), rows["status"].to_pylist(), strict=True)
    assert {status for path, status in ends if path in good} == {"ok"}


@pytest.mark.real
def test_every_real_file_ends_as_rows(real_data, tmp_path):
    for folder, files in (("dicom", 22), ("nifti", 3)):  # each with a LICENSE beside the scans
        catalog = load_catalog(real_data / folder, KEYED)
        rows = decoded_rows(catalog)
        assert len(set(catalog["path"].to_pylist())) == files
        assert rows.num_rows == catalog.num_rows
        by_path = {}
        for path, status in zip(
            catalog["path"].to_pylist(), rows["status"].to_pylist(), strict=True
        ):
            by_path.setdefault(path, []).append(status)
        for path, statuses in by_path.items():
            if "brain_t1w" in path:
                assert statuses == ["ok"], path
            if "emri_small" in path:
                assert statuses == ["ok"] * 10
            if "LICENSE" in path or "truncated" in path or "rtplan" in path:
                assert statuses == ["quarantined"], path


NAME, ID, BIRTH, ACCESSION = "Zyxwvut^Quentin", "PID-77310-X", "19431231", "ACC9981742"
PLANTED = ("Zyxwvut", "Quentin", ID, BIRTH, ACCESSION)


def planted_archive(folder):
    """Files that name a patient wherever a file may, and end in every way a file can end."""

    def dataset(**changes):
        made = mr_dataset(GRAY)
        made.PatientName, made.PatientID = NAME, ID
        made.PatientBirthDate, made.AccessionNumber = BIRTH, ACCESSION
        made.SeriesDescription = f"t1 {NAME}"
        for keyword, value in changes.items():
            setattr(made, keyword, value)
        return made

    plan = dataset(Modality="RTPLAN", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.5")
    del plan.PixelData
    good = saved(dataset())
    voxels = as_axial_volume(STACK)
    files = [
        ("good", good),
        ("bare", without_preamble(dataset(), ExplicitVRLittleEndian)),
        ("cut", good[:-200]),
        ("other", saved(dataset(Modality="CT"))),
        ("scout", saved(dataset(SeriesDescription=f"scout {NAME}"))),
        ("plan", saved(plan)),
        ("charset", good.replace(b"DICM", b"DICM").replace(b"MONOCHROME2", b"Zyxwvut^Que")),
        ("modality", saved(dataset(Modality=ACCESSION))),
        (
            "volume.nii",
            nifti_bytes(voxels, zipped=False, descrip=NAME.encode(), db_name=ID.encode()),
        ),
        ("short.nii.gz", nifti_bytes(voxels, descrip=NAME.encode())[:600]),
        ("none.dcm", b""),
    ]
    return write_files(folder, files)


def test_no_identity_is_in_anything_that_is_written(tmp_path, capfd, caplog, recwarn):
    catalog = load_catalog(planted_archive(tmp_path / "archive"), KEYED)
    write_catalog(catalog, tmp_path / "catalog.parquet")
    rows = decoded_rows(catalog)
    assert {"ok", "quarantined", "skipped"} == set(rows["status"].to_pylist())
    pq.write_table(rows, tmp_path / "rows.parquet", compression="none")
    written = b"".join(path.read_bytes() for path in tmp_path.glob("*.parquet"))
    out, err = capfd.readouterr()
    warned = " ".join(str(warning.message) for warning in recwarn)
    said = str(catalog.to_pydict()) + str(rows.drop_columns(["image"]).to_pydict())
    for value in PLANTED:
        assert value.encode() not in written, value
        for text in (said, out, err, caplog.text, warned):
            assert value.lower() not in text.lower(), value


def test_clear_ids_are_kept_on_request_only(tmp_path):
    planted_archive(tmp_path / "archive")
    options = CatalogOptions(identity=IdentityHash(clear=True))
    catalog = load_catalog(tmp_path / "archive", options)
    assert ID in catalog["patient_key"].to_pylist()
    assert isinstance(catalog, pa.Table)
