"""The service on a real, small Ray: parity with the predictor, recovery."""

import hashlib
import socket
import threading

import numpy as np
import psutil
import pytest

from braintumor_ray.client import Client, ServiceError
from braintumor_ray.decode.decode import decode
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.serving.settings import ServingSettings
from tests.builders import make_bundle
from tests.serving.fakes import TOKEN, encoded

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def served(cluster, tmp_path_factory):
    from braintumor_ray.serving import app

    bundle = tmp_path_factory.mktemp("served") / "bundle"
    make_bundle(bundle)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    settings = ServingSettings(
        bundle=str(bundle),
        precision="fp32",
        decoders=1,
        token_sha256=digest,
        torch_threads=1,
        front_replicas=1,
    )
    app.start(settings, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}", bundle
    app.serve.shutdown()


def test_the_service_says_what_the_predictor_says(served):
    address, bundle = served
    scans = [encoded(seed=seed) for seed in range(12)]
    columns = Predictor.from_bundle(bundle, "cpu", precision="fp32")(
        [decode(s).gray for s in scans]
    )
    with Client(address, TOKEN) as client:
        answers = [client.predict(scan, heatmap="array") for scan in scans[:4]]
        answers += [e["result"] for e in client.predict_batch(scans[4:], heatmap="array")]
    for index, answer in enumerate(answers):
        assert answer["predicted_class"] == columns["predicted_class"][index]
        probabilities = list(answer["probabilities"].values())
        np.testing.assert_allclose(probabilities, columns["probabilities"][index], atol=1e-5)
        for method in ("gradcam", "gradcam_pp"):
            expected = columns[method][index].astype(float)
            np.testing.assert_allclose(answer["maps"][method]["array"], expected, atol=1e-2)


def test_without_the_token_nothing_is_answered(served):
    with Client(served[0]) as client, pytest.raises(ServiceError) as caught:
        client.predict(encoded())
    assert caught.value.status == 401


@pytest.mark.chaos
def test_a_killed_predictor_fails_no_request(served):
    address, _ = served
    answered, failed, stop = [], [], threading.Event()

    def ask():
        with Client(address, TOKEN, timeout_s=120) as client:
            while not stop.is_set():
                try:
                    answered.append(client.predict(encoded())["predicted_class"])
                except ServiceError as error:
                    failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    stop.wait(2)
    before = len(answered)
    predictor().kill()
    stop.wait(2)
    with Client(address, TOKEN, timeout_s=120) as client:
        client.predict(encoded())  # waits for the new replica
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(answered) > before > 0


def predictor():
    """The predictor's process, among this session's own."""
    processes = psutil.Process().children(recursive=True)
    mark = "ServeReplica:braintumor:Predictor"
    return next(each for each in processes if mark in " ".join(each.cmdline()))
