"""Test-time augmentation: one average decides, everywhere, by a threshold of its own."""

from dataclasses import replace

import numpy as np
import pytest

from braintumor_ray.errors import BundleError, ResultsError
from braintumor_ray.models.bundle import Bundle, ViewFields, save_bundle
from braintumor_ray.models.classifier import Architecture
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.predict.results import results_folder
from braintumor_ray.predict.views import test_time_views as views_of
from braintumor_ray.scoring.job import open_results
from braintumor_ray.scoring.options import PredictSettings, ScoreOptions
from braintumor_ray.serving.batched import describe_model, make_predictor
from braintumor_ray.serving.settings import ServingSettings
from tests.builders import make_fields, make_model

VIEWS = ViewFields(threshold=0.31, temperature=1.7)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    model = make_model()
    fields = make_fields(Architecture("small-cnn", "linear", 4, 64), views=VIEWS)
    target = tmp_path_factory.mktemp("b") / "bundle"
    save_bundle(target, fields, model, None, "card")
    return target


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)


def test_the_logits_are_the_mean_over_the_views_and_choose_the_map(path, images):
    plain, views = (Predictor.from_bundle(path, "cpu", precision="fp32", tta=t) for t in (0, 1))
    wanted = np.mean([plain.forward(v, explain=False).logits for v in views_of(images)], axis=0)
    found = views.forward(images)
    np.testing.assert_allclose(found.logits, wanted, atol=1e-5)
    np.testing.assert_array_equal(found.cam_classes, wanted.argmax(axis=1))
    assert not np.allclose(found.logits, plain.forward(images).logits)
    np.testing.assert_allclose(found.pooled, plain.forward(images).pooled, atol=1e-5)


def test_threshold_temperature_and_fingerprint_are_those_of_the_views(path, images):
    plain, views = (Predictor.from_bundle(path, "cpu", tta=t) for t in (False, True))
    fields = views.bundle.fields
    assert (fields.threshold, fields.temperature) == (0.31, 1.7)
    assert (plain.bundle.fields.threshold, plain.bundle.fields.temperature) == (0.5, 1.0)
    assert plain.bundle.fingerprint != views.bundle.fingerprint
    columns = views(list(images))
    positive = columns["probabilities"][:, views.bundle.positive_indices].sum(axis=1)
    np.testing.assert_array_equal(columns["decision"], positive >= np.float32(0.31))


def test_the_same_threshold_is_still_another_fingerprint(path):
    bundle = Predictor.from_bundle(path, "cpu").bundle
    single = ViewFields(threshold=bundle.fields.threshold, temperature=bundle.fields.temperature)
    assert bundle.averaging(single).fingerprint != bundle.fingerprint


def test_what_views_decide_by_leaves_the_fingerprint_of_single_ones(path):
    bundle = Predictor.from_bundle(path, "cpu").bundle
    bare = Bundle(bundle.fields.model_copy(update={"views": None}), bundle.state, bundle.detector)
    assert bare.fingerprint == bundle.fingerprint
    with pytest.raises(BundleError, match="--recalibrate"):
        bare.averaging()


def test_results_of_views_are_another_folders(path, tmp_path):
    options = ScoreOptions(PredictSettings(str(path)))
    views = replace(options, predict=replace(options.predict, tta=True))
    bundle = Predictor.from_bundle(path, "cpu").bundle
    folder = results_folder(tmp_path / "r")
    open_results(folder, bundle.averaging(), views)
    meta = results_folder(tmp_path / "r").meta
    assert (meta["tta"], meta["threshold"]) == (True, 0.31)
    with pytest.raises(ResultsError, match="made with --tta; give it, or score into another"):
        open_results(results_folder(tmp_path / "r"), bundle, options)
    open_results(results_folder(tmp_path / "plain"), bundle, options)
    assert "tta" not in results_folder(tmp_path / "plain").meta
    with pytest.raises(ResultsError, match="made without --tta; leave it out"):
        open_results(results_folder(tmp_path / "plain"), bundle.averaging(), views)


def test_the_service_offers_them(path):
    card = describe_model(make_predictor(ServingSettings(bundle=str(path), tta=True)))
    assert (card.threshold, card.temperature) == (0.31, 1.7)
