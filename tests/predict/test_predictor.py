import inspect
import threading
from dataclasses import fields

import numpy as np
import pytest
import torch

from braintumor_ray import Predictor
from braintumor_ray.decode.head import WHOLE, Box
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.library import library_cams
from braintumor_ray.explain.placement import square_maps
from braintumor_ray.explain.regions import head_weights, heat_shares_batch
from braintumor_ray.models.bundle import GeometryFields, save_bundle
from braintumor_ray.models.classifier import normalize
from braintumor_ray.models.domain import DomainDetector
from braintumor_ray.predict.options import NetworkKeywords, PredictorKeywords, PredictorOptions
from braintumor_ray.serving.batched import describe_model, predict_rows
from braintumor_ray.serving.model import placed as placed_row
from tests.builders import CLASSES, disc_scan, make_bundle, make_fields, make_model

SCANS = [disc_scan(seed, (60 + 7 * seed, 110 - 5 * seed)) for seed in range(7)]


def test_columns_are_those_of_the_contract(bundle_path):
    columns = Predictor.from_bundle(bundle_path)(SCANS)
    assert set(columns) == {
        *("predicted_class", "probabilities", "decision", "entropy", "out_of_domain"),
        *("cam_class", "gradcam", "gradcam_pp", "heat_inside", "heat_rim", "heat_background"),
    }
    assert columns["probabilities"].shape == (7, 4)
    np.testing.assert_allclose(columns["probabilities"].sum(axis=1), 1, atol=1e-6)
    assert columns["gradcam"].dtype == np.float16
    assert columns["gradcam"].shape == (7, 8, 8)
    shares = np.stack([columns[f"heat_{r}"] for r in ("inside", "rim", "background")])
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    order = columns["probabilities"].argmax(axis=1)
    assert columns["predicted_class"] == [CLASSES[i] for i in order]


@pytest.mark.parametrize("head", ["linear", "mlp", "attention", "flatten"])
def test_maps_of_several_classes_cost_one_pass_and_are_those_of_each_class(head, tmp_path):
    model = make_model(head=head)
    save_bundle(tmp_path / "b", make_fields(model.architecture), model, None, "# card\n")
    predictor = Predictor.from_bundle(tmp_path / "b", precision="fp32")
    wanted = {name: predictor.explaining(name)(SCANS) for name in CLASSES}
    passes, features = [], predictor._engine.features
    predictor._engine.features = lambda images: passes.append(len(images)) or features(images)
    columns, maps = predictor.explain_classes(SCANS, CLASSES)
    assert passes == [len(SCANS)]
    assert "gradcam" not in columns
    assert columns["predicted_class"] == wanted[CLASSES[0]]["predicted_class"]
    for name in CLASSES:
        for method in ("gradcam", "gradcam_pp"):
            np.testing.assert_allclose(maps[name][method], wanted[name][method], rtol=2e-3)
    assert len({each["gradcam"].tobytes() for each in maps.values()}) > 1
    nothing = predictor.explain_classes([], CLASSES[:1])[1]
    assert nothing[CLASSES[0]]["gradcam"].shape == (0, 8, 8)
    with pytest.raises(UsageError, match="class 'nobody' is unknown"):
        predictor.explain_classes(SCANS, ["nobody"])


def test_options_are_keywords_of_both_ways_to_make_a_predictor(bundle_path):
    names = {field.name for field in fields(PredictorOptions)}
    assert names == PredictorKeywords.__annotations__.keys()
    assert names - {"device"} == NetworkKeywords.__annotations__.keys()
    for function in (Predictor, Predictor.from_bundle):
        assert names < set(inspect.signature(function).parameters)
    with pytest.raises(TypeError, match="unexpected keyword argument 'presicion'"):
        Predictor.from_bundle(bundle_path, presicion="fp32")


def test_a_batch_gives_what_single_scans_give(bundle_path):
    predictor = Predictor.from_bundle(bundle_path, precision="fp32", batch_size=3)
    together = predictor(SCANS)
    for index, scan in enumerate(SCANS):
        alone = predictor([scan])
        np.testing.assert_allclose(
            together["probabilities"][index], alone["probabilities"][0], atol=1e-5
        )
        np.testing.assert_allclose(
            together["gradcam_pp"][index].astype(float),
            alone["gradcam_pp"][0].astype(float),
            rtol=1e-2,
            atol=1e-3,
        )


def test_no_scans_give_empty_columns(bundle_path):
    columns = Predictor.from_bundle(bundle_path)([])
    assert columns["probabilities"].shape == (0, 4)
    assert columns["gradcam"].shape == (0, 8, 8)


def test_without_maps_the_prediction_is_the_same(bundle_path):
    predictor = Predictor.from_bundle(bundle_path)
    plain = predictor(SCANS, explain=False)
    assert "gradcam" not in plain
    np.testing.assert_array_equal(plain["probabilities"], predictor(SCANS)["probabilities"])


def test_temperature_and_threshold_come_from_the_bundle(tmp_path):
    make_bundle(tmp_path / "a")
    make_bundle(tmp_path / "b", temperature=4.0, threshold=0.99)
    sharp = Predictor.from_bundle(tmp_path / "a", precision="fp32")
    soft = Predictor.from_bundle(tmp_path / "b", precision="fp32")
    logits = sharp.forward(np.zeros((1, 64, 64), np.uint8)).logits
    expected = np.exp(logits / 4) / np.exp(logits / 4).sum()
    found = soft([np.zeros((64, 64), np.uint8)])
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    assert not found["decision"].any()
    assert soft(SCANS)["entropy"].mean() > sharp(SCANS)["entropy"].mean()


def test_the_map_can_follow_the_likeliest_positive_class(tmp_path):
    names = ("no_tumor", "tumor")
    model = make_model(classes=2, sigmoid=True)
    model.head.bias.data.fill_(-9.0)
    save_bundle(tmp_path / "b", make_fields(model.architecture, names), model, None, "")
    found = Predictor.from_bundle(tmp_path / "b", cam_class="positive")(SCANS)
    assert set(found["predicted_class"]) == {"no_tumor"}
    assert set(found["cam_class"]) == {"tumor"}


def test_four_threads_share_one_predictor(bundle_path):
    predictor = Predictor.from_bundle(bundle_path)
    expected = predictor(SCANS)
    found = []

    def work():
        found.extend(predictor(SCANS) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for columns in found:
        np.testing.assert_array_equal(columns["gradcam_pp"], expected["gradcam_pp"])
        np.testing.assert_array_equal(columns["probabilities"], expected["probabilities"])


@pytest.mark.parametrize("backbone", ["mobilenetv2_100", "resnet50", "densenet121"])
def test_bf16_stays_close_to_fp32(tmp_path, backbone):
    model = make_model(backbone, "linear", 128)
    save_bundle(tmp_path / "b", make_fields(model.architecture), model, None, "")
    scans = [disc_scan(seed) for seed in range(4)]
    full, half = (
        Predictor.from_bundle(tmp_path / "b", precision=p, device="cpu")(scans)
        for p in ("fp32", "bf16")
    )
    assert np.abs(full["probabilities"] - half["probabilities"]).max() < 0.02
    same = [a == b for a, b in zip(full["cam_class"], half["cam_class"], strict=True)]
    for name in ("gradcam", "gradcam_pp"):
        pairs = zip(full[name][same], half[name][same], strict=True)
        assert all(np.corrcoef(a.ravel(), b.ravel())[0, 1] >= 0.99 for a, b in pairs)


def test_flat_and_foreign_inputs_are_out_of_domain(tmp_path):
    features = np.random.default_rng(0).normal(size=(200, 96)).astype(np.float32)
    detector = DomainDetector.fit(features)
    make_bundle(tmp_path / "near", detector=detector, domain_limit=1e6)
    make_bundle(tmp_path / "far", detector=detector, domain_limit=1e-6)
    scans = [disc_scan(1), np.zeros((80, 80), np.uint8)]
    near = Predictor.from_bundle(tmp_path / "near")(scans)["out_of_domain"]
    assert near.tolist() == [False, True]  # a black picture holds no head
    assert Predictor.from_bundle(tmp_path / "far")(scans)["out_of_domain"].all()


def test_maps_larger_than_16_are_averaged_by_area(tmp_path):
    model = make_model("cnn-3conv", "flatten", 128)
    assert model.map_shape == (128, 28, 28)
    save_bundle(tmp_path / "b", make_fields(model.architecture), model, None, "")
    predictor = Predictor.from_bundle(tmp_path / "b", precision="fp32")
    assert predictor(SCANS[:2])["gradcam"].shape == (2, 16, 16)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32), np.zeros((0, 4), np.uint8)],
)
def test_what_is_not_a_gray_picture_is_refused(bundle_path, wrong):
    with pytest.raises(ValueError, match="uint8"):
        Predictor.from_bundle(bundle_path)([wrong])


def test_options_that_cannot_be_met_are_refused(bundle_path):
    with pytest.raises(UsageError, match="nonecam"):
        Predictor.from_bundle(bundle_path, methods=("nonecam",))
    with pytest.raises(UsageError, match="teapot"):
        Predictor.from_bundle(bundle_path, device="teapot")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="CUDA"):
            Predictor.from_bundle(bundle_path, device="cuda")


class TestCellsThatDoNotDivideThePicture:
    GEOMETRY = GeometryFields(offset=(0.0, 0.0), stride=(8.0, 8.0))

    @pytest.fixture
    def pair(self, tmp_path):
        """The same network: drawn as usual, and by its geometry."""
        make_bundle(tmp_path / "a")
        make_bundle(tmp_path / "b", map_geometry=self.GEOMETRY)
        return [Predictor.from_bundle(tmp_path / name, precision="fp32") for name in "ab"]

    def test_maps_move_and_predictions_do_not(self, pair):
        usual, placed = (predictor(SCANS) for predictor in pair)
        np.testing.assert_array_equal(usual["probabilities"], placed["probabilities"])
        frame = pair[1].bundle.map_frame
        expected = square_maps(usual["gradcam"].astype(np.float32), frame)
        np.testing.assert_allclose(placed["gradcam"], expected, rtol=1e-2, atol=1e-3)
        assert not np.array_equal(placed["gradcam"], usual["gradcam"])

    def test_heat_is_counted_where_it_is_drawn(self, pair):
        found = pair[1](SCANS)
        views = [pair[1].bundle.preprocessing.resize(scan) for scan in SCANS]
        heads = head_weights(views, pair[1].cam_shape)
        shares = heat_shares_batch(found["gradcam"].astype(np.float32), heads)
        np.testing.assert_allclose(found["heat_inside"], shares[:, 0], atol=1e-3)
        np.testing.assert_allclose(found["heat_background"], shares[:, 2], atol=1e-3)

    def test_the_service_places_as_the_archive_job_does(self, pair):
        predictor = pair[1]
        card = describe_model(predictor)
        squares = [predictor.bundle.preprocessing.resize(scan) for scan in SCANS]
        rows = predict_rows(predictor, squares, [True] * len(squares))
        expected = predictor(SCANS)["gradcam_pp"]
        for row, cam in zip(rows, expected, strict=True):
            served = placed_row(row, WHOLE, Box(*card.map_frame))["gradcam_pp"]
            np.testing.assert_allclose(served, cam, rtol=1e-2, atol=1e-3)

    def test_library_maps_move_too(self, pair):
        usual, placed = (p.library_map(SCANS[0], CLASSES[0], "gradcam") for p in pair)
        expected = square_maps(usual[None], pair[1].bundle.map_frame)[0]
        np.testing.assert_allclose(placed, expected, atol=1e-6)

    def test_earlier_layers_lie_where_they_look_whatever_the_last_has_learned(self, pair):
        view = pair[0].bundle.preprocessing.resize(SCANS[0])
        images = normalize(torch.from_numpy(view[None]), pair[0].bundle.preprocessing)
        raw = library_cams(pair[0].bundle.build_model(), images, [0], "gradcam", "layers.2")
        moved = square_maps(raw, Box(-0.5 / 64, -0.5 / 64, 63.5 / 64, 63.5 / 64))[0]
        for predictor in pair:
            early = predictor.library_map(SCANS[0], CLASSES[0], "gradcam", "layers.2")
            np.testing.assert_allclose(early, moved, atol=1e-6)
