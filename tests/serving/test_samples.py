"""Every sample of the OpenAPI document runs as it is written."""

import io
import json
import shutil
import subprocess
import zipfile

import pydicom
import pytest

from braintumor_ray.serving.schemas import SAMPLES
from tests.publishing.scans import ORIENTATIONS, scan_dataset
from tests.serving.fakes import encoded, listening, make_client

ALL = [(path, *sample) for path, samples in SAMPLES.items() for sample in samples]
COUNTS = {"several files": 2, "a zip, such as a DICOM series": 3}


@pytest.fixture(scope="module")
def address(decoders):
    with listening(decoders) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("samples")
    (made / "scan.png").write_bytes(encoded())
    (made / "other.png").write_bytes(encoded(seed=2))
    with zipfile.ZipFile(made / "series.zip", "w") as archive:
        for number in range(3):
            stream = io.BytesIO()
            dataset = scan_dataset(number, ORIENTATIONS["axial"])
            dataset.save_as(stream, enforce_file_format=True)
            archive.writestr(f"{number}.dcm", stream.getvalue())
    (made / "scan.dcm").write_bytes(stream.getvalue())
    return made


def test_the_document_has_a_sample_of_every_operation(client):
    found = client.get("/openapi.json").json()["paths"]
    for path, methods in found.items():
        for operation in methods.values():
            sources = [sample["source"] for sample in operation["x-codeSamples"]]
            assert sources == [source for _, source in SAMPLES[path]]


@pytest.mark.parametrize(("path", "label", "source"), ALL, ids=lambda text: text[:30])
def test_a_sample_runs(address, folder, path, label, source):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if label == "a DICOM map":
        pytest.importorskip("highdicom")
    line = source.replace("http://127.0.0.1:8000", address)
    done = subprocess.run(
        line, shell=True, cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if label == "a DICOM map":
        assert pydicom.dcmread(folder / "map.dcm").ContentLabel == "GRADCAM"
        return
    answer = json.loads(done.stdout)
    if path == "/v1/predict/batch":
        assert len(answer["results"]) == COUNTS[label]
        assert all("result" in entry for entry in answer["results"])
    else:
        assert answer


def test_the_samples_are_of_every_route_that_has_a_schema(decoders):
    with make_client(decoders) as client:
        assert set(client.get("/openapi.json").json()["paths"]) == set(SAMPLES)
