"""`explain` of folders, of chosen classes, and with the variants of notebooks."""

import numpy as np
import pytest

from braintumor_ray.errors import UsageError
from braintumor_ray.worklist.explained import explain_files, in_folders
from braintumor_ray.worklist.options import ExplainOptions
from tests.builders import make_bundle, write_archive


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    make_bundle(path)
    return str(path)


@pytest.fixture
def archive(tmp_path):
    write_archive(tmp_path / "archive", 24)
    return str(tmp_path / "archive")


def test_of_a_folder_scans_from_all_of_it_are_drawn(archive):
    found = in_folders([archive], 6)
    assert len(found) == len(set(found)) == 6
    every = in_folders([archive], 1000)
    places = [every.index(name) for name in found]
    assert places == sorted(places)
    assert places[-1] >= len(every) * 0.8
    assert in_folders(["a.png"], 1) == ["a.png"]


def test_a_folder_gives_a_picture_a_scan_a_sheet_and_progress(archive, bundle, tmp_path):
    seen = []
    options = ExplainOptions(limit=3, layout="compare")
    found = explain_files([archive], bundle, tmp_path / "out", options, lambda *at: seen.append(at))
    assert found["pictures"][0].endswith("/compare_01.png")
    assert len(found["pictures"]) == 4
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_maps_of_chosen_classes_differ_and_an_unknown_one_is_refused(archive, bundle, tmp_path):
    from braintumor_ray.predict.predictor import Predictor

    predictor = Predictor.from_bundle(bundle)
    gray = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    names = predictor.bundle.fields.class_names
    maps = [predictor.explaining(name)([gray]) for name in names]
    assert [columns["cam_class"][0] for columns in maps] == list(names)
    assert predictor.cam_class == "predicted"
    signatures = {columns["gradcam"].tobytes() for columns in maps}
    assert len(signatures) > 1
    with pytest.raises(UsageError, match="'nobody' is unknown"):
        explain_files([archive], bundle, tmp_path, ExplainOptions(of_classes=("nobody",)))


def test_the_variants_of_notebooks_are_what_their_names_tell(bundle):
    import torch

    from braintumor_ray.explain.library import library_cams
    from braintumor_ray.explain.overlay import METHOD_LABELS
    from braintumor_ray.models.bundle import load_bundle

    loaded = load_bundle(bundle)
    model = loaded.build_model()
    size = loaded.preprocessing.image_size
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.features(images)
    leaf = features.clone().requires_grad_()
    logits = model.logits(leaf)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1]))
    wanted = {}
    for name, value in (("gradcam_abs", logits[0, 1]), ("gradcam_loss", loss)):
        (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True)
        weights = gradient.abs() if name == "gradcam_abs" else gradient
        cam = (weights.mean((2, 3), keepdim=True) * features).sum(1).relu()[0]
        wanted[name] = cam.numpy()
    for name, cam in wanted.items():
        got = library_cams(model, images, [1], name)[0]
        assert "notebook" in METHOD_LABELS[name]
        place = np.unravel_index(got.argmax(), got.shape)
        cell = [int(at * cells / size) for at, cells in zip(place, cam.shape, strict=True)]
        assert cam[tuple(cell)] >= 0.8 * cam.max()


def test_the_service_explains_the_class_that_a_request_names_and_only_for_it(bundle):
    from braintumor_ray.predict.predictor import Predictor
    from braintumor_ray.serving.batched import predict_rows

    predictor = Predictor.from_bundle(bundle)
    size = predictor.bundle.preprocessing.image_size
    square = np.random.default_rng(0).integers(0, 255, (size, size)).astype(np.uint8)
    names = predictor.bundle.fields.class_names
    plain, asked, none = predict_rows(predictor, [square] * 3, [True, names[2], False])
    assert (plain["predicted_class"], asked["cam_class"]) == (plain["cam_class"], names[2])
    np.testing.assert_allclose(plain["probabilities"], asked["probabilities"], atol=1e-5)
    assert "gradcam" in asked
    assert "gradcam" not in none
