"""The Serve config in `cluster/` is one that Serve takes and that answers."""

import importlib
import socket
from pathlib import Path

import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from braintumor_ray.client import Client
from braintumor_ray.errors import UsageError
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


@pytest.mark.ray
@pytest.mark.slow
def test_what_it_describes_answers(config, cluster, bundle_path):
    (application,) = config.applications
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    args = {**application.args, "bundle": str(bundle_path), "max_replicas": 2, "decoders": 1}
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
        deployed = serve.status().applications[application.name].deployments
        assert set(deployed) == {"Front", "Predictor"}
        assert deployed["Front"].replica_states == {"RUNNING": 2}
        with Client(f"http://127.0.0.1:{port}", timeout_s=120) as client:
            assert client.ready()
            assert client.predict(encoded(), heatmap="array")["maps"]["gradcam"]["array"]
    finally:
        serve.shutdown()
