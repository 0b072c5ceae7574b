"""A DICOM upload may be answered with its maps as Parametric Maps."""

import io
from email import message_from_bytes
from email.policy import HTTP

import numpy as np
import pydicom
import pytest

from braintumor_ray.explain.overlay import upsampled
from braintumor_ray.serving import service
from braintumor_ray.serving.objects import answer_form
from tests.publishing.scans import ORIENTATIONS, SHAPE, enhanced_dataset, scan_dataset
from tests.serving.fakes import encoded

DICOM = {"Accept": "application/dicom"}
RELATED = {"Accept": 'multipart/related; type="application/dicom"'}
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"


def content(dataset):
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def read(data):
    return pydicom.dcmread(io.BytesIO(data))


def values(found):
    return np.frombuffer(found.FloatPixelData, np.float32).reshape(SHAPE)


@pytest.fixture(scope="module")
def scan():
    return scan_dataset(0, ORIENTATIONS["oblique"])


@pytest.fixture(autouse=True)
def _installed():
    pytest.importorskip("highdicom")


def test_the_answer_is_the_map_at_the_place_of_the_scan(client, scan):
    response = client.post("/v1/predict", content=content(scan), headers=DICOM)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/dicom"
    found = read(response.content)
    assert found.SOPClassUID == PARAMETRIC_MAP
    assert found.StudyInstanceUID == scan.StudyInstanceUID
    assert found.PatientID == scan.PatientID
    cam = np.arange(49, dtype=np.float16).reshape(7, 7)
    np.testing.assert_allclose(values(found), upsampled(cam, SHAPE), atol=1e-4)
    place = found.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    np.testing.assert_allclose(place.ImagePositionPatient, scan.ImagePositionPatient, atol=1e-4)


def test_the_option_explain_chooses_the_map(client, scan):
    url = "/v1/predict?explain=gradcam%2B%2B"
    found = read(client.post(url, content=content(scan), headers=DICOM).content)
    assert found.ContentLabel == "GRADCAM_PP"


def test_several_maps_come_as_parts_of_one_answer(client, scan):
    response = client.post("/v1/predict", content=content(scan), headers=RELATED)
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + response.content, policy=HTTP).get_payload()
    assert [part.get_content_type() for part in parts] == ["application/dicom"] * 2
    boundary = response.headers["content-type"].split("boundary=")[1].encode()
    bodies = [p.split(b"\r\n\r\n", 1)[1] for p in response.content.split(b"--" + boundary)[1:-1]]
    assert [read(body).ContentLabel for body in bodies] == ["GRADCAM", "GRADCAM_PP"]


def test_a_frame_of_a_multi_frame_object_is_chosen(client):
    data = content(enhanced_dataset(ORIENTATIONS["axial"]))
    found = read(client.post("/v1/predict?frame=1", content=data, headers=DICOM).content)
    place = found.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    assert place.ImagePositionPatient[2] == 12


def problem(response, status):
    assert response.status_code == status, response.text
    return response.json()["detail"]


def test_what_has_no_place_or_patient_is_not_acceptable(client, scan):
    detail = problem(client.post("/v1/predict", content=encoded(), headers=DICOM), 406)
    assert "the upload is png" in detail
    placeless = scan_dataset(0, ORIENTATIONS["axial"])
    del placeless.ImagePositionPatient
    detail = problem(client.post("/v1/predict", content=content(placeless), headers=DICOM), 406)
    assert "no ImagePositionPatient" in detail
    assert "Planted" not in detail
    detail = problem(client.post("/v1/predict/batch", content=b"", headers=DICOM), 406)
    assert "each of them alone" in detail


def test_without_a_map_there_is_nothing_to_answer(client, scan):
    response = client.post("/v1/predict?explain=none", content=content(scan), headers=DICOM)
    assert "makes no map" in problem(response, 422)


def test_without_the_package_the_extra_is_named(client, scan, monkeypatch):
    monkeypatch.setattr(service, "is_installed", lambda name: False)
    response = client.post("/v1/predict", content=content(scan), headers=DICOM)
    assert "braintumor-ray[hospital]" in problem(response, 501)
    assert client.post("/v1/predict", content=content(scan)).status_code == 200


def test_a_damaged_header_costs_a_problem(client, scan):
    data = bytearray(content(scan))
    for at in range(140, len(data) - 96 * 112, 31):
        changed = bytes(data[:at]) + bytes([data[at] ^ 0xFF]) + bytes(data[at + 1 :])
        response = client.post("/v1/predict", content=changed, headers=DICOM)
        assert response.status_code in (200, 400, 406, 415, 422), (at, response.text)
        if response.status_code != 200:
            assert "Planted" not in response.text


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("text/html", "json"),
        ("application/dicom", "dicom"),
        ("Application/DICOM;q=0.5", "dicom"),
        ("application/dicom, */*", "dicom"),
        ("application/dicom;q=0.2, application/json;q=0.8", "json"),
        ("application/dicom;q=0", "json"),
        ("application/dicom;q=x", "json"),
        ("application/json, application/dicom", "json"),
        ('multipart/related; type="application/dicom"', "related"),
    ],
)
def test_the_header_is_weighed(accept, form):
    assert answer_form(accept) == form
