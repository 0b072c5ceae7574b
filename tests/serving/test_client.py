"""The client against a service in this process, over a real socket."""

import hashlib
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from braintumor_ray.client import Client, ServiceError
from braintumor_ray.errors import UsageError
from tests.serving.fakes import CARD, TOKEN, encoded, listening


@pytest.fixture(scope="module")
def address(decoders):
    with listening(decoders, hashlib.sha256(TOKEN.encode()).hexdigest(), max_queued=1) as found:
        yield found


def test_a_scan_is_predicted_from_bytes_and_from_a_path(address, tmp_path):
    path = tmp_path / "scan.png"
    path.write_bytes(encoded())
    with Client(address, TOKEN) as client:
        assert client.ready()
        assert client.model()["fingerprint"] == CARD.fingerprint
        answer = client.predict(encoded(), explain="gradcam++", heatmap="array")
        assert list(answer["maps"]) == ["gradcam_pp"]
        assert client.predict(path)["scan"] == answer["scan"]


def test_a_batch_gives_one_entry_per_scan(address):
    with Client(address, TOKEN) as client:
        results = client.predict_batch([encoded(), b"nothing"])
    assert "result" in results[0]
    assert results[1]["error"]["status"] == 415


def test_a_refusal_carries_status_and_problem(address):
    with Client(address, TOKEN) as client, pytest.raises(ServiceError, match="send JPEG") as caught:
        client.predict(b"no scan")
    assert caught.value.status == 415
    assert caught.value.problem["title"] == "Not an image in a known format"
    with Client(address) as foreign_format, pytest.raises(ServiceError, match="token") as caught:
        foreign_format.model()
    assert caught.value.status == 401


def test_a_busy_service_is_asked_again(address):
    def ask(_):
        with Client(address, TOKEN, retries=20) as client:
            return client.predict(encoded())["bundle_fingerprint"]

    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(ask, range(3))) == {CARD.fingerprint}


def test_where_nothing_listens_the_error_says_so():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with Client(url) as client:
        assert not client.ready()
        with pytest.raises(ServiceError, match="is it running"):
            client.model()


def test_an_address_that_is_no_url_is_refused():
    with pytest.raises(UsageError, match="localhost:8000"):
        Client("localhost:8000")
