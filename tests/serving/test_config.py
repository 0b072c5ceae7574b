"""The Serve config in `cluster/` is one that Serve takes and that answers."""

import importlib
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from braintumor_ray.client import Client
from braintumor_ray.errors import UsageError
from braintumor_ray.serving.app import PredictorReplica, predictor_options
from braintumor_ray.serving.command import authority, check_port
from braintumor_ray.serving.settings import ServingSettings, parse_settings
from tests.serving.fakes import encoded

CONFIG = Path(__file__).resolve().parents[2] / "cluster" / "serve.yaml"


@pytest.fixture
def config():
    return ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))


def builder(application):
    module, name = application.import_path.split(":")
    return getattr(importlib.import_module(module), name)


def test_it_listens_on_loopback_and_writes_no_line_per_request(config):
    assert config.http_options.host == "127.0.0.1"
    assert config.logging_config.enable_access_log is False


def test_its_arguments_are_settings_and_autoscale(config):
    (application,) = config.applications
    settings = parse_settings(application.args)
    assert settings.max_replicas > settings.replicas
    assert settings.front_replicas == ServingSettings("b").front_replicas == 2


def test_an_unknown_argument_is_refused_before_anything_starts(config):
    (application,) = config.applications
    with pytest.raises(UsageError, match="replica_count"):
        builder(application)({**application.args, "replica_count": 3})


@pytest.mark.parametrize(
    ("replicas", "most", "scaled"), [(0, 2, (0, 2)), (1, 4, (1, 4)), (2, None, None), (2, 2, None)]
)
def test_predictors_scale_between_the_two_numbers(replicas, most, scaled):
    settings = parse_settings({"bundle": "b", "replicas": replicas, "max_replicas": most})
    deployment = PredictorReplica.options(**predictor_options(settings))
    config = deployment._deployment_config.autoscaling_config
    assert scaled == (config and (config.min_replicas, config.max_replicas))
    if scaled is None:
        assert deployment.num_replicas == replicas


@pytest.mark.parametrize(("replicas", "most"), [(0, None), (0, 0), (3, 2)])
def test_numbers_of_predictors_that_never_answer_are_refused(replicas, most):
    with pytest.raises(UsageError, match="max_replicas"):
        parse_settings({"bundle": "b", "replicas": replicas, "max_replicas": most})


@contextmanager
def deployed(config, bundle, **changes):
    """The service that the file describes but for `changes`; yields its client."""
    (application,) = config.applications
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    args = {**application.args, "bundle": str(bundle), "max_replicas": 2, "decoders": 1, **changes}
    serve.start(
        proxy_location=config.proxy_location,
        http_options={**config.http_options.model_dump(exclude_unset=True), "port": port},
        logging_config=config.logging_config,
    )
    try:
        serve.run(
            builder(application)(args),
            name=application.name,
            route_prefix=application.route_prefix,
        )
        with Client(f"http://127.0.0.1:{port}", timeout_s=120) as client:
            yield client
    finally:
        serve.shutdown()


def replicas_of(name):
    return serve.status().applications["braintumor"].deployments[name].replica_states


@pytest.mark.ray
@pytest.mark.slow
def test_what_it_describes_answers(config, cluster, bundle_path):
    with deployed(config, bundle_path) as client:
        assert set(serve.status().applications["braintumor"].deployments) == {"Front", "Predictor"}
        assert replicas_of("Front") == {"RUNNING": 2}
        assert client.ready()
        assert client.predict(encoded(), heatmap="array")["maps"]["gradcam"]["array"]


@pytest.mark.ray
@pytest.mark.slow
def test_from_no_predictor_the_first_request_starts_one(config, cluster, bundle_path):
    with deployed(config, bundle_path, replicas=0, front_replicas=1) as client:
        assert client.ready()
        assert not replicas_of("Predictor").get("RUNNING")
        assert client.predict(encoded(), explain="none")["predicted_class"]
        assert replicas_of("Predictor") == {"RUNNING": 1}


def test_an_address_of_ipv6_is_in_brackets_where_a_port_follows():
    assert authority("127.0.0.1", 8000) == "127.0.0.1:8000"
    assert authority("::1", 8000) == "[::1]:8000"


def test_a_taken_port_is_named_as_in_a_link():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen on \[::1\]:{port} "):
            check_port("::1", port)
