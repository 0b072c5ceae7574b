"""What a prediction over HTTP says."""

import base64

import cv2
import numpy as np
import pytest

from braintumor_ray.decode.decode import decode
from braintumor_ray.decode.hashes import pixel_sha256
from braintumor_ray.explain.overlay import drawn_heatmap, superimpose
from braintumor_ray.serving import upload
from tests.builders import disc_scan
from tests.serving.fakes import CARD, FakeModel, encoded, make_client


def decoded_png(text):
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED)


def test_the_answer_names_class_decision_uncertainty_heat_and_bundle(client):
    answer = client.post("/v1/predict", content=encoded()).json()
    assert answer["predicted_class"] in CARD.class_names
    assert list(answer["probabilities"]) == list(CARD.class_names)
    assert answer["decision"]["threshold"] == CARD.threshold
    assert answer["decision"]["probability"] == pytest.approx(
        1 - answer["probabilities"]["no_tumor"], abs=1e-5
    )
    assert answer["heat"] == {"inside": 0.5, "rim": 0.25, "background": None}
    assert answer["bundle_fingerprint"] == CARD.fingerprint


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff"])
def test_raw_bytes_of_each_format_are_told_by_their_content(client, suffix):
    answer = client.post(
        "/v1/predict", content=encoded(suffix), headers={"Content-Type": "text/plain"}
    ).json()
    assert answer["scan"]["format"] == {".jpg": "jpeg", ".tiff": "tiff"}.get(suffix, suffix[1:])
    assert (answer["scan"]["height"], answer["scan"]["width"]) == (96, 112)


def test_the_network_gets_the_square_that_scoring_would_give_it(decoders):
    model = FakeModel()
    data = encoded(".jpg")
    with make_client(decoders, model) as client:
        answer = client.post("/v1/predict", content=data).json()
    gray = decode(data).gray
    np.testing.assert_array_equal(model.seen[0], CARD.preprocessing.resize(gray))
    assert answer["scan"]["pixel_sha256"] == pixel_sha256(gray)


def test_a_form_and_raw_bytes_give_the_same_answer(client):
    data = encoded()
    raw = client.post("/v1/predict", content=data).json()
    form = client.post("/v1/predict", files={"file": ("scan.png", data)}).json()
    assert raw == form


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("none", []),
        ("gradcam", ["gradcam"]),
        ("gradcam%2B%2B", ["gradcam_pp"]),
        ("gradcam++", ["gradcam_pp"]),
        ("gradcam_pp", ["gradcam_pp"]),
        ("both", ["gradcam", "gradcam_pp"]),
    ],
)
def test_explain_chooses_the_maps(client, asked, given):
    answer = client.post(f"/v1/predict?explain={asked}", content=encoded()).json()
    assert list(answer["maps"]) == given
    assert (answer["heat"] is None) == (answer["cam_class"] is None) == (not given)


def test_an_array_is_the_raw_map(client):
    answer = client.post("/v1/predict?heatmap=array", content=encoded()).json()
    assert answer["maps"]["gradcam"]["array"] == np.arange(49).reshape(7, 7).tolist()


def test_an_overlay_is_the_one_that_explain_draws(client):
    data = encoded()
    answer = client.post("/v1/predict?heatmap=overlay", content=data).json()
    gray = decode(data).gray
    cam = np.arange(49, dtype=np.float16).reshape(7, 7)
    expected = superimpose(gray, drawn_heatmap(cam, gray.shape))
    drawn = decoded_png(answer["maps"]["gradcam"]["overlay"])
    np.testing.assert_array_equal(drawn[..., ::-1], expected)
    assert answer["maps"]["gradcam"]["flat"] is False


def test_pictures_of_large_scans_have_at_most_1024_pixels_a_side(client):
    data = encoded(size=(600, 2048))
    answer = client.post("/v1/predict?heatmap=png&scan=png", content=data).json()
    assert decoded_png(answer["scan"]["png"]).shape == (300, 1024)
    assert decoded_png(answer["maps"]["gradcam"]["png"]).shape == (300, 1024, 3)
    assert (answer["scan"]["height"], answer["scan"]["width"]) == (600, 2048)


def test_square_and_picture_come_from_one_decoding(monkeypatch):
    decoded, original = [], upload.decode_frames
    monkeypatch.setattr(upload, "decode_frames", lambda *args: decoded.append(1) or original(*args))
    options = upload.UploadOptions(preprocessing=CARD.preprocessing, picture=True)
    found = upload.decode_upload(encoded(size=(600, 2048)), options)
    assert len(decoded) == 1
    assert found.picture.shape == (300, 1024)
    assert found.image.shape == (CARD.preprocessing.image_size,) * 2


def test_each_file_of_a_batch_has_its_own_result_or_error(client):
    files = [
        ("files", ("good.png", encoded())),
        ("files", ("note.txt", b"not an image at all")),
        ("files", ("empty.png", b"")),
        ("files", ("cut.png", encoded()[:200])),
    ]
    results = client.post("/v1/predict/batch", files=files).json()["results"]
    assert [entry["index"] for entry in results] == [0, 1, 2, 3]
    assert [entry["name"] for entry in results] == ["good.png", "note.txt", "empty.png", "cut.png"]
    assert "result" in results[0]
    assert [entry["error"]["status"] for entry in results[1:]] == [415, 400, 400]


def test_the_model_route_describes_bundle_and_limits(client):
    found = client.get("/v1/model").json()
    assert found["fingerprint"] == CARD.fingerprint
    assert found["limits"]["max_bytes"] == 64 * 2**20
    assert "not a medical device" in found["notice"]


def test_frames_of_a_volume_are_chosen_and_those_it_has_not_are_parameters(client):
    nibabel = pytest.importorskip("nibabel")
    slices = [disc_scan(seed, (64, 72)) for seed in range(6)]
    volume = nibabel.Nifti1Image(np.stack(slices, -1).astype(np.int16), np.eye(4)).to_bytes()
    answer = client.post("/v1/predict?frame=3", content=volume).json()
    assert (answer["scan"]["format"], answer["scan"]["frame"]) == ("nifti", 3)
    for query in ("frame=6", "volume=1"):
        response = client.post(f"/v1/predict?{query}", content=volume)
        assert response.status_code == 422
        assert "out of range" in response.json()["detail"]
