"""The client against a service in this process, over a real socket."""

import doctest
import hashlib
import io
import re
import socket
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from braintumor_ray import client as module
from braintumor_ray.client import Client, ServiceError
from braintumor_ray.errors import UsageError
from tests.serving.fakes import CARD, TOKEN, encoded, listening


@pytest.fixture(scope="module")
def address(decoders):
    with listening(decoders, hashlib.sha256(TOKEN.encode()).hexdigest(), max_queued=1) as found:
        yield found


@pytest.fixture(scope="module")
def free(decoders):
    """A service without a token, and with a long queue."""
    with listening(decoders) as found:
        yield found


def zipped(contents):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}.png", content)
    return stream.getvalue()


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


def some_scans(count):
    return [encoded(seed=seed) for seed in range(count)]


@pytest.mark.parametrize(("batch_size", "in_flight"), [(1, 1), (3, 2), (4, 3), (50, 4)])
def test_many_scans_come_back_in_order_with_their_own_errors(free, tmp_path, batch_size, in_flight):
    scans = some_scans(11)
    scans[2], scans[5], scans[7] = b"no scan", tmp_path / "missing.png", zipped(scans[:2])
    with Client(free) as client:
        entries = list(client.predict_many(iter(scans), batch_size, in_flight, explain="none"))
        alone = [
            client.predict(s, explain="none")
            for s in scans
            if isinstance(s, bytes) and s[:4] == b"\x89PNG"
        ]
    assert [entry["index"] for entry in entries] == list(range(11))
    assert [entry["result"] for entry in entries if "result" in entry] == alone
    errors = {entry["index"]: entry["error"]["title"] for entry in entries if "error" in entry}
    assert list(errors) == [2, 5, 7]
    assert errors[5] == "The file cannot be read"
    assert "zip" in errors[7]


def test_scans_are_read_no_further_ahead_than_the_requests_in_flight(free):
    taken = []

    def scans():
        for scan in some_scans(12):
            taken.append(scan)
            yield scan

    with Client(free) as client:
        entries = client.predict_many(scans(), batch_size=2, in_flight=2, explain="none")
        next(entries)
        assert len(taken) <= 2 * (2 + 1) + 1
        entries.close()


def test_many_scans_wait_for_a_busy_service(address):
    with Client(address, TOKEN, retries=30) as client:
        entries = list(client.predict_many(some_scans(6), batch_size=1, in_flight=3))
    assert all("result" in entry for entry in entries)


def test_a_request_that_is_too_large_is_the_error_of_its_scans(decoders):
    with listening(decoders, max_batch_files=2) as found, Client(found) as client:
        entries = list(client.predict_many(some_scans(4), batch_size=3))
    assert ["error" in entry for entry in entries] == [True, True, True, False]
    assert entries[0]["error"]["status"] == 413


def test_a_body_that_is_refused_before_all_of_it_came_is_told_so(decoders):
    large = bytes(16 * 2**20)  # more than the sockets hold: the service closes while it is sent
    with listening(decoders, max_batch_bytes=2**20, max_bytes=2**20) as found:
        for _ in range(5):
            with Client(found) as client, pytest.raises(ServiceError) as refused:
                client.predict(large)
            assert refused.value.status == 413
        with Client(found) as client:
            entries = list(client.predict_many([large, encoded(), large], batch_size=1))
    assert [entry.get("error", {}).get("status") for entry in entries] == [413, None, 413]


class _InFront(BaseHTTPRequestHandler):
    """What is at the address in place of the service."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.server.status)
        self.send_header("Location", "https://elsewhere/")
        self.end_headers()
        self.wfile.write(b"<p>This is another page.")

    do_POST = do_GET

    def log_message(self, *args):
        """Tests print nothing."""


@pytest.mark.parametrize("status", [200, 204, 301, 307])
def test_what_is_no_answer_of_the_service_is_no_success(status):
    with ThreadingHTTPServer(("127.0.0.1", 0), _InFront) as server:
        server.status = status
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            assert not client.ready()
            for ask in (client.predict, client.predict_zip, lambda s: client.predict_batch([s])):
                with pytest.raises(ServiceError, match=f"{status}: no answer of this service"):
                    ask(b"scan")
        server.shutdown()


def test_what_every_request_would_meet_is_raised(free, address):
    with Client(address, "wrong") as client, pytest.raises(ServiceError, match="token"):
        list(client.predict_many(some_scans(2)))
    with Client(free) as client, pytest.raises(ServiceError, match="magic"):
        list(client.predict_many(some_scans(2), explain="magic"))
    with Client(free) as client, pytest.raises(UsageError, match="in_flight=0"):
        client.predict_many([], in_flight=0)


def test_a_zip_gives_one_entry_per_file(free):
    with Client(free) as client:
        entries = client.predict_zip(zipped(some_scans(3)), explain="none")
    assert [entry["name"] for entry in entries] == ["0.png", "1.png", "2.png"]


def test_the_example_in_the_module_runs(free, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(b"no scan" if number == 2 else encoded())
    names = vars(module) | {"address": free, "paths": paths}
    (example,) = doctest.DocTestFinder(recurse=False).find(module, extraglobs=names)
    assert len(example.examples) == 2
    assert doctest.DocTestRunner().run(example).failed == 0


def test_where_nothing_listens_the_error_says_so():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with Client(url) as client:
        assert not client.ready()
        with pytest.raises(ServiceError, match="is it running"):
            client.model()


@pytest.mark.parametrize(
    "url", ["localhost:8000", "http://", "http://host:99999", "http://host:80a", "http://[::1"]
)
def test_an_address_that_is_no_url_is_refused(url):
    with pytest.raises(UsageError, match=re.escape(f"'{url}' is not a service's URL")):
        Client(url)


def test_a_token_is_taken_as_its_file_has_it(address):
    with Client(address, f"{TOKEN}\n") as client:
        assert client.model()["class_names"] == list(CARD.class_names)


@pytest.mark.parametrize("token", ["two words", "a\nb", "geheimnisträger", "a\0b"])
def test_a_token_that_is_none_is_refused_and_not_shown(token):
    with pytest.raises(UsageError, match="one word of ASCII") as refused:
        Client("http://127.0.0.1:1", token)
    assert token not in str(refused.value)
