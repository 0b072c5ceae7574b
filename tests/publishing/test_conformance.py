"""Other people's tools take the objects: dciodvfy finds no error, Orthanc keeps each once."""

import shutil
import subprocess

import pytest

from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.publish import publish
from tests.publishing.orthanc import Orthanc, needs_orthanc
from tests.publishing.scans import ORIENTATIONS, scan_dataset, scored, write
from tests.publishing.test_publish import archive_table, published


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans") / "archive"
    for number, (name, orientation) in enumerate(ORIENTATIONS.items()):
        write(folder, f"{name}.dcm", scan_dataset(number, orientation))
    return folder


@pytest.fixture
def one_series(tmp_path):
    for number in range(3):
        write(tmp_path / "series", f"{number}.dcm", scan_dataset(number, ORIENTATIONS["oblique"]))
    return tmp_path / "series"


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(tmp_path, archive):
    results = scored(tmp_path / "results", archive, sets=[["no_tumor"], [], ["no_tumor"]])
    published(results, archive, tmp_path / "out")
    has_no_errors(tmp_path / "out", 12)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error_in_the_map_of_a_series(tmp_path, one_series):
    results = scored(tmp_path / "results", one_series)
    published(results, one_series, tmp_path / "out", map_per="series")
    has_no_errors(tmp_path / "out", 2 + 3 * 2)


def has_no_errors(folder, objects):
    paths = [*folder.rglob("*.dcm")]
    assert len(paths) == objects
    for path in paths:
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        lines = (told.stdout + told.stderr).splitlines()
        assert not [line for line in lines if line.startswith("Error")], path.name


@needs_orthanc
def test_orthanc_keeps_each_object_once(tmp_path, archive):
    orthanc = Orthanc(tmp_path)
    orthanc.start()
    try:
        keeps_each_once(tmp_path, archive, orthanc)
    finally:
        orthanc.end()


def keeps_each_once(tmp_path, archive, orthanc):
    for name in ("one", "another ledger"):
        results = scored(tmp_path / name, archive)
        options = PublishOptions(to=orthanc.dicomweb, wait=20)
        assert publish(str(results), archive_table(archive), options)["objects"] == 12
        assert orthanc.instances() == 12
