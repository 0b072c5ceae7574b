"""What a client is told when a request cannot be answered."""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.requests import Request

from braintumor_ray.errors import UsageError
from braintumor_ray.serving.body import Budget, read_body
from braintumor_ray.serving.problems import ProblemError
from braintumor_ray.serving.service import not_ready
from braintumor_ray.serving.settings import ServingSettings, parse_settings, token_digest
from braintumor_ray.serving.web import OPEN_PATHS
from tests.decode.mutations import MAY_DECODE, bomb_png, mutated_images
from tests.serving.fakes import TOKEN, FakeModel, encoded, make_client, make_decoders


def problem(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["type"].startswith("/docs#")
    assert document["detail"]
    return document


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "empty file"),
        (b"hello", 415, "send JPEG"),
        (b'{"image": 1}', 415, "not an image"),
        (encoded()[:100], 400, "export it again"),
        (bomb_png(), 422, "over the limit"),
    ],
)
def test_a_body_that_is_no_scan_says_why(client, body, status, says):
    assert says in problem(client.post("/v1/predict", content=body), status)["detail"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("explain=magic", "explain='magic'"),
        ("explian=both", "'explian' is unknown"),
        ("frame=-1", "frame='-1'"),
        ("frame=7", "out of range"),
        ("explain=none&heatmap=png", "needs a map"),
        ("frame=7&frame=0", "'frame' comes twice"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(client, query, says):
    response = client.post(f"/v1/predict?{query}", content=encoded())
    assert says in problem(response, 422)["detail"]


def test_unknown_paths_and_methods_are_problems_too(client):
    problem(client.get("/nowhere"), 404)
    problem(client.get("/v1/predict"), 405)
    for path in ("/v1/predict/", "/v1/model/", "/healthz/", "/static/"):
        problem(client.request("GET", path, follow_redirects=False), 404)


def test_a_declared_length_over_the_limit_is_refused_before_the_body_is_read(decoders):
    with make_client(decoders, max_bytes=1000) as client:
        response = client.post("/v1/predict", content=b"x" * 1001)
    assert "1001 bytes are declared" in problem(response, 413)["detail"]


def body_of(receive, silence_s=5.0):
    """Read a body of at most 1000 bytes from an ASGI `receive`."""

    async def read():
        request = Request({"type": "http", "method": "POST", "headers": []}, receive)
        with Budget(5000).share() as share:
            return await read_body(request, 1000, share, silence_s)

    return asyncio.run(read())


def test_a_stream_is_refused_as_soon_as_it_passes_the_limit():
    chunks = []

    async def endless():
        chunks.append(100)
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    with pytest.raises(ProblemError, match="over 1000 bytes"):
        body_of(endless)
    assert sum(chunks) == 1100


def test_a_client_that_pauses_inside_its_body_is_let_go():
    async def silent():
        await asyncio.sleep(30)

    with pytest.raises(ProblemError, match="slow-body"):
        body_of(silent, silence_s=0.05)


def test_a_client_that_hangs_up_inside_its_body_is_no_fault_of_ours():
    async def gone():
        return {"type": "http.disconnect"}

    with pytest.raises(ProblemError, match="closed the connection"):
        body_of(gone)


def test_too_many_files_and_too_large_files_of_a_batch_are_refused(decoders):
    with make_client(decoders, max_batch_files=2, max_bytes=5000) as client:
        many = [("files", (f"{i}", b"x")) for i in range(3)]
        problem(client.post("/v1/predict/batch", files=many), 413)
        large = [("files", ("large", b"x" * 5001)), ("files", ("small", encoded(size=(48, 48))))]
        results = client.post("/v1/predict/batch", files=large).json()["results"]
    assert results[0]["error"]["status"] == 413
    assert "result" in results[1]


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"--b",
        b"--b\r\n",
        b"--b\r\nContent-Disposition: form-data\r\n--b--",
        b"--b--",
        b"--b\r\n" + b"A: " + b"a" * 9000 + b"\r\n\r\nx\r\n--b--",
        b"--c\r\n\r\nx\r\n--c--",
    ],
)
def test_a_malformed_form_is_a_problem_not_a_crash(client, form):
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(client.post("/v1/predict", content=form, headers=headers), 400)
    no_boundary = {"Content-Type": "multipart/form-data"}
    problem(client.post("/v1/predict/batch", content=form, headers=no_boundary), 400)


def test_a_field_that_is_not_a_file_is_refused(client):
    response = client.post("/v1/predict/batch", data={"explain": "both"}, files={"x": ("x", b"1")})
    assert "not a file" in problem(response, 422)["detail"]


def test_large_headers_are_refused(client):
    problem(client.get("/healthz", headers={"X-Large": "a" * 40_000}), 431)


def test_damaged_and_misnamed_files_get_a_status_and_never_a_trace(client):
    for name, content, kind in mutated_images(seed=5, n=60):
        response = client.post("/v1/predict", content=content)
        if response.status_code == 200:
            assert kind in MAY_DECODE, name
            continue
        assert response.status_code in (400, 415, 422), name
        assert "Traceback" not in response.text
        assert "braintumor_ray" not in response.text


def test_a_file_that_kills_its_decoder_costs_only_its_own_answer():
    pool = make_decoders(worker="tests.serving.hostile_worker:decode_or_die")
    try:
        with make_client(pool) as client:
            assert (
                "decoder died" in problem(client.post("/v1/predict", content=b"die"), 400)["detail"]
            )
            assert client.post("/v1/predict", content=encoded()).status_code == 200
    finally:
        pool.close()


def test_requests_over_the_queue_get_503_with_retry_after_and_the_rest_are_answered(decoders):
    with make_client(decoders, FakeModel(wait_s=0.5), max_queued=3) as client:
        with ThreadPoolExecutor(12) as threads:
            sent = [
                threads.submit(client.post, "/v1/predict", content=encoded()) for _ in range(12)
            ]
            responses = [one.result() for one in sent]
        statuses = [response.status_code for response in responses]
        refused = next(r for r in responses if r.status_code == 503)
        assert statuses.count(200) >= 3
        assert statuses.count(200) + statuses.count(503) == 12
        assert refused.headers["retry-after"] == "1"
        problem(refused, 503)
        assert client.post("/v1/predict", content=encoded()).status_code == 200


def test_bodies_share_one_budget_of_memory(decoders):
    with make_client(decoders, max_inflight_bytes=1000) as client:
        assert "memory" in problem(client.post("/v1/predict", content=b"x" * 1001), 503)["detail"]


def test_an_unexpected_fault_tells_nothing_of_the_inside(decoders, caplog):
    error = RuntimeError("patient Smith in /srv/secret")
    with make_client(decoders, FakeModel(error=error)) as client:
        response = client.post("/v1/predict", content=encoded())
    problem(response, 500)
    assert "Smith" not in response.text + caplog.text
    assert "RuntimeError" in caplog.text


def test_not_ready_is_told_by_readyz_while_healthz_lives(decoders):
    with make_client(decoders, FakeModel(error=not_ready())) as client:
        assert problem(client.get("/readyz"), 503)["type"] == "/docs#not-ready"
        assert client.get("/healthz").json() == {"status": "alive"}


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/v1/model", "/healthz", "/readyz"]
)
def test_head_answers_as_get_does_without_a_body(client, path):
    """Load balancers and uptime monitors ask so (RFC 9110, section 9.3.2)."""
    asked, read = client.head(path), client.get(path)
    assert (asked.status_code, asked.headers["content-length"]) == (200, str(len(read.content)))


def test_head_tells_that_the_service_is_not_ready(decoders):
    with make_client(decoders, FakeModel(error=not_ready())) as client:
        assert client.head("/readyz").status_code == 503
        assert client.head("/healthz").status_code == 200


def test_where_predictors_start_with_the_first_request_readyz_asks_none(decoders):
    model = FakeModel(error=AssertionError("asked"))
    with make_client(decoders, model, replicas=0, max_replicas=1) as client:
        assert client.get("/readyz").status_code == 200


@pytest.fixture
def secured(decoders):
    with make_client(decoders, digest=hashlib.sha256(TOKEN.encode()).hexdigest()) as client:
        yield client


def test_with_a_token_only_health_and_the_pages_static_parts_are_open(secured):
    paths = ["/v1/predict", "/v1/predict/batch", "/v1/model", "/openapi.json", "/nowhere", "/docs/"]
    for path in paths:
        for verb in ("GET", "POST", "PUT", "OPTIONS"):
            assert secured.request(verb, path).status_code == 401, (verb, path)
    for path in OPEN_PATHS:
        assert secured.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "header",
    ["Bearer wrong", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN} x", "Bearer \xff"],
)
def test_a_wrong_token_is_refused_and_the_right_one_is_not_echoed(secured, header):
    response = secured.get("/v1/model", headers={"Authorization": header.encode("latin-1")})
    assert problem(response, 401)["type"] == "/docs#token"
    assert response.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in response.text


def test_the_right_token_opens(secured):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert secured.get("/v1/model", headers=headers).status_code == 200


def test_the_token_comes_from_a_file_or_the_environment_and_never_travels(tmp_path, monkeypatch):
    expected = hashlib.sha256(TOKEN.encode()).hexdigest()
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    monkeypatch.delenv("BRAINTUMOR_TOKEN", raising=False)
    assert token_digest(ServingSettings(bundle="b")) is None
    assert token_digest(ServingSettings(bundle="b", token_file=str(file))) == expected
    monkeypatch.setenv("BRAINTUMOR_TOKEN", TOKEN)
    assert token_digest(ServingSettings(bundle="b")) == expected


@pytest.mark.parametrize("content", ["", "  \n", "two words", "gr\u00fc\u00df"])
def test_a_token_file_without_a_token_is_refused(tmp_path, content):
    file = tmp_path / "token"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="holds no token"):
        token_digest(ServingSettings(bundle="b", token_file=str(file)))


def test_an_unknown_setting_is_named():
    with pytest.raises(UsageError, match="replica"):
        parse_settings({"bundle": "b", "replica": 3})
