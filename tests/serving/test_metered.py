"""What the service counts of its answers."""

import pytest
from starlette.testclient import TestClient

from braintumor_ray.serving.access import MeteredApp
from braintumor_ray.serving.problems import busy
from braintumor_ray.serving.web import ROUTES
from tests.serving.fakes import FakeModel


@pytest.fixture
def answers():
    return []


@pytest.fixture
def client(answers):
    from braintumor_ray.serving.service import Service
    from braintumor_ray.serving.settings import ServingSettings
    from braintumor_ray.serving.web import create_app

    service = Service(ServingSettings("none"), FakeModel(busy("full")), None)
    app = MeteredApp(create_app(service), ROUTES, lambda *answer: answers.append(answer))
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("path", "route", "code"),
    [
        ("/healthz", "/healthz", 200),
        ("/v1/model", "/v1/model", 503),
        ("/v1/patients/DOE", "other", 404),
        ("/static/style.css", "other", 200),
    ],
)
def test_every_answer_is_counted_by_route_and_code(client, answers, path, route, code):
    client.get(path)
    ((found, status, seconds),) = answers
    assert (found, status) == (route, code)
    assert 0 <= seconds < 60
