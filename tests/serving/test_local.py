"""A front with a predictor of its own: the same answers, its share of the cores."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from braintumor_ray.decode.decode import decode
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.serving import app, local
from braintumor_ray.serving.local import LocalModel
from braintumor_ray.serving.settings import ServingSettings
from tests.builders import disc_scan
from tests.serving.fakes import encoded, make_client

SQUARES = [disc_scan(seed, (64, 64)) for seed in range(4)]


@pytest.mark.parametrize(
    ("chosen", "together"),
    [
        ({}, True),
        ({"device": "cpu", "engine": "openvino"}, True),
        ({"replicas": 2}, False),
        ({"replicas": 0, "max_replicas": 1}, False),
        ({"max_replicas": 4}, False),
        ({"gpus_per_replica": 0.5}, False),
        ({"device": "cuda"}, False),
        ({"in_fronts": False}, False),
        ({"device": "cuda", "in_fronts": True}, True),
    ],
)
def test_a_single_predictor_on_a_cpu_is_in_the_fronts(chosen, together):
    assert ServingSettings("b", **{"in_fronts": None, **chosen}).together is together


@pytest.fixture(scope="module")
def settings(bundle_path):
    return ServingSettings(
        str(bundle_path),
        device="cpu",
        precision="fp32",
        torch_threads=4,
        front_replicas=2,
        in_fronts=True,
    )


@pytest.fixture(scope="module")
def model(settings):
    threads = torch.get_num_threads()
    yield LocalModel(settings)
    torch.set_num_threads(threads)


@pytest.fixture
def batches(monkeypatch):
    """Size and threads of each batch."""
    found, predict_rows = [], local.predict_rows

    def noted(predictor, squares, explain):
        found.append((len(squares), torch.get_num_threads()))
        return predict_rows(predictor, squares, explain)

    monkeypatch.setattr(local, "predict_rows", noted)
    return found


def test_answers_are_those_of_the_predictor(decoders, model, settings, bundle_path):
    scan = encoded()
    with make_client(decoders, model) as client:
        answer = client.post("/v1/predict?heatmap=array", content=scan).json()
    columns = Predictor.from_bundle(bundle_path, "cpu", precision="fp32")([decode(scan).gray])
    found = list(answer["probabilities"].values())
    np.testing.assert_allclose(found, columns["probabilities"][0], atol=1e-5)
    np.testing.assert_allclose(
        answer["maps"]["gradcam"]["array"], columns["gradcam"][0].astype(float), atol=1e-2
    )


def test_a_lone_scan_has_all_cores(model, batches):
    asyncio.run(model.predict(SQUARES[0], True))
    assert batches == [(1, 4)]


def test_the_thread_that_predicts_has_made_the_predictor(settings, monkeypatch):
    makers, users, predict_rows = [], [], local.predict_rows
    make_predictor = local.make_predictor

    def made(*arguments):
        makers.append(threading.get_ident())
        return make_predictor(*arguments)

    def used(*arguments):
        users.append(threading.get_ident())
        return predict_rows(*arguments)

    monkeypatch.setattr(local, "make_predictor", made)
    monkeypatch.setattr(local, "predict_rows", used)
    asyncio.run(LocalModel(settings).predict(SQUARES[0], True))
    assert {*makers} == {*users}


def test_while_others_come_a_scan_has_the_share_of_its_front(model, batches):
    async def scene():
        with model.coming(1):
            await model.predict(SQUARES[0], True)

    asyncio.run(scene())
    assert batches == [(1, 2)]


def test_scans_that_wait_are_one_batch(model, batches):
    async def scene():
        return await asyncio.gather(*(model.predict(square, True) for square in SQUARES))

    assert len(asyncio.run(scene())) == 4
    assert [size for size, _ in batches] == [4]


@pytest.mark.parametrize("in_fronts", [True, False])
def test_what_serve_is_given(settings, monkeypatch, in_fronts):
    made = []
    monkeypatch.setattr(app.serve, "ingress", lambda make: made.append(make) or (lambda kind: kind))
    chosen = replace(settings, in_fronts=in_fronts, decoders=1)
    front = app.build_application(chosen, None)._bound_deployment
    assert front.name == "Front"
    others = [each._bound_deployment.name for each in front.init_args]
    assert others == ([] if in_fronts else ["Predictor"])
    if in_fronts:
        with TestClient(made[0]()) as client:
            assert client.get("/readyz").status_code == 200
            assert client.post("/v1/predict", content=encoded()).json()["predicted_class"]
