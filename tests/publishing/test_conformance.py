"""Other people's tools take the objects: dciodvfy finds no error, Orthanc keeps each once."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.publish import publish
from tests.publishing.scans import ORIENTATIONS, scan_dataset, scored, write
from tests.publishing.test_publish import archive_table, published

PLUGINS = [*Path("/usr/share/orthanc/plugins").glob("*OrthancDicomWeb*.so")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans") / "archive"
    for number, (name, orientation) in enumerate(ORIENTATIONS.items()):
        write(folder, f"{name}.dcm", scan_dataset(number, orientation))
    return folder


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(tmp_path, archive):
    results = scored(tmp_path / "results", archive, sets=[["no_tumor"], [], ["no_tumor"]])
    published(results, archive, tmp_path / "out")
    paths = [*(tmp_path / "out").rglob("*.dcm")]
    assert len(paths) == 12
    for path in paths:
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        lines = (told.stdout + told.stderr).splitlines()
        assert not [line for line in lines if line.startswith("Error")], path.name


@pytest.fixture
def orthanc(tmp_path):
    """The address of an Orthanc of the test's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(path) for path in PLUGINS],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    process = subprocess.Popen(
        ["Orthanc", str(tmp_path / "orthanc.json")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                stored(address)
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def stored(address):
    with urllib.request.urlopen(f"{address}/statistics", timeout=10) as answer:
        return json.load(answer)["CountInstances"]


@pytest.mark.skipif(not (PLUGINS and shutil.which("Orthanc")), reason="Orthanc is not installed")
def test_orthanc_keeps_each_object_once(tmp_path, archive, orthanc):
    for name in ("one", "another ledger"):
        results = scored(tmp_path / name, archive)
        options = PublishOptions(to=f"{orthanc}/dicom-web", wait=20)
        assert publish(str(results), archive_table(archive), options)["objects"] == 12
        assert stored(orthanc) == 12
