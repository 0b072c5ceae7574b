"""The predictor of a replica: the same answers, the cores of a scan alone and of a batch."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.serving import app, batched
from braintumor_ray.serving.batched import BatchedPredictor
from braintumor_ray.serving.settings import ServingSettings
from tests.builders import disc_scan

SCANS = [(disc_scan(seed, (64, 64)), True) for seed in range(4)]


@pytest.fixture(scope="module")
def settings(bundle_path):
    return ServingSettings(str(bundle_path), device="cpu", precision="fp32", torch_threads=4)


@pytest.fixture(scope="module")
def predictor(settings):
    threads = torch.get_num_threads()
    yield BatchedPredictor(settings)
    torch.set_num_threads(threads)


@pytest.fixture
def batches(monkeypatch):
    """Size and threads of each batch."""
    found, predict_rows = [], batched.predict_rows

    def noted(predictor, squares, explain):
        found.append((len(squares), torch.get_num_threads()))
        return predict_rows(predictor, squares, explain)

    monkeypatch.setattr(batched, "predict_rows", noted)
    return found


def test_rows_are_those_of_the_predictor(predictor, bundle_path):
    rows = asyncio.run(predictor(SCANS))
    columns = Predictor.from_bundle(bundle_path, "cpu", precision="fp32")([s for s, _ in SCANS])
    for name, tolerance in (("probabilities", 1e-5), ("gradcam", 1e-2), ("gradcam_pp", 1e-2)):
        found = np.array([row[name] for row in rows], np.float64)
        np.testing.assert_allclose(found, columns[name].astype(np.float64), atol=tolerance)


def test_a_lone_scan_has_all_cores(predictor, batches):
    asyncio.run(predictor(SCANS[:1]))
    assert batches == [(1, 4)]


def test_beside_another_batch_a_batch_has_half_of_the_cores(predictor, batches):
    async def scene():
        return await asyncio.gather(*(predictor(SCANS * 4) for _ in range(2)))

    asyncio.run(scene())
    assert sum(size for size, _ in batches) == 32
    assert (8, 2) in batches


def test_the_thread_that_predicts_has_made_the_predictor(settings, monkeypatch):
    makers, users, predict_rows = [], [], batched.predict_rows
    make_predictor = batched.make_predictor

    def made(*arguments):
        makers.append(threading.get_ident())
        return make_predictor(*arguments)

    def used(*arguments):
        users.append(threading.get_ident())
        return predict_rows(*arguments)

    monkeypatch.setattr(batched, "make_predictor", made)
    alone = BatchedPredictor(settings)
    monkeypatch.setattr(batched, "predict_rows", used)
    asyncio.run(alone(SCANS[:1]))
    assert makers == users


def test_fronts_are_given_the_predictors(settings):
    front = app.build_application(settings, None)._bound_deployment
    assert front.name == "Front"
    assert [each._bound_deployment.name for each in front.init_args] == ["Predictor"]
