"""Properties of every operation, generated from the OpenAPI document itself."""

import hashlib

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks

from braintumor_ray.serving.web import OPEN_PATHS
from tests.serving.fakes import TOKEN, encoded, make_client

BODIES = (encoded(".png"), encoded(".jpg"), encoded(".bmp"), encoded()[:300], b"", b"no scan")
OPERATIONS = [
    "POST /v1/predict",
    "POST /v1/predict/batch",
    "GET /v1/model",
    "GET /healthz",
    "GET /readyz",
]
few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # no shrinking: a failing request is short enough
    suppress_health_check=list(HealthCheck),
)
for kind in ("application/octet-stream", "application/dicom", "image/*", "application/zip"):
    schemathesis.openapi.media_type(kind, st.sampled_from(BODIES) | st.binary(max_size=200))


def document(app, **options):
    return schemathesis.openapi.from_asgi("/openapi.json", app, **options)


@pytest.fixture(scope="module")
def described(decoders):
    with make_client(decoders) as client:
        yield document(client.app)


def test_the_list_below_is_every_operation(described):
    found = [operation.ok().label for operation in described.get_all_operations()]
    assert sorted(found) == sorted(OPERATIONS)


def ask_for_all(operation, mode, **options):
    """Statuses of generated requests, each answer checked against the document."""
    statuses = set()

    @few
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case):
        # That bytes are a scan, or that two options go together, no schema can say.
        excluded = [checks.CHECKS.get_one("positive_data_acceptance")]
        response = case.call_and_validate(excluded_checks=excluded, **options)
        refused = mode is GenerationMode.NEGATIVE and every_file_is_refused(response)
        statuses.add(422 if refused else response.status_code)

    holds()
    return statuses


def every_file_is_refused(response):
    """Of a batch: what is wrong with a file is told by its entry, not by the status."""
    entries = response.json().get("results", [])
    return bool(entries) and all("error" in entry for entry in entries)


@pytest.mark.parametrize("name", OPERATIONS)
def test_whatever_the_document_allows_is_answered_as_it_promises(described, name):
    verb, path = name.split()
    statuses = ask_for_all(described[path][verb], GenerationMode.POSITIVE)
    assert 200 in statuses
    assert max(statuses) < 500


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch"])
def test_whatever_it_does_not_allow_is_refused_as_it_promises(described, path):
    statuses = ask_for_all(described[path]["POST"], GenerationMode.NEGATIVE)
    assert statuses <= {400, 413, 415, 422}


@pytest.mark.parametrize("name", OPERATIONS)
def test_with_a_token_the_document_says_so_and_only_health_answers_without(decoders, name):
    verb, path = name.split()
    with make_client(decoders, digest=hashlib.sha256(TOKEN.encode()).hexdigest()) as client:
        given = {"Authorization": f"Bearer {TOKEN}"}
        operation = document(client.app, headers=given)[path][verb]
        assert 200 in ask_for_all(operation, GenerationMode.POSITIVE, headers=given)
        if path not in OPEN_PATHS:
            wrong = {"Authorization": "Bearer wrong"}
            assert ask_for_all(operation, GenerationMode.POSITIVE, headers=wrong) == {401}
