"""Ray's own parsers take the launcher's YAML, the Serve configs and the runtime environment."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeDeploySchema

from braintumor_ray.errors import UsageError
from tests.cluster.manifests import CLUSTER, PROJECT, pinned, read_yaml

LAUNCHER = read_yaml(CLUSTER / "launcher.yaml")
RAY_SCHEMA = json.loads(
    (Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8")
)
TYPES = LAUNCHER["available_node_types"]


def serve_configs():
    service = read_yaml(CLUSTER / "kuberay" / "rayservice.yaml")
    return {
        "serve.yaml": read_yaml(CLUSTER / "serve.yaml"),
        "rayservice.yaml": yaml.safe_load(service["spec"]["serveConfigV2"]),
    }


CONFIGS = serve_configs()


def test_ray_takes_the_launcher_config():
    jsonschema.validate(LAUNCHER, RAY_SCHEMA)
    validate_config(prepare_config(copy.deepcopy(LAUNCHER)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_worker",), 3),
        (("docker", "head_imag"), "x"),
        (("available_node_types", "gpu", "min_worker"), 1),
        (("available_node_types", "gpu", "docker", "image"), "x"),
        (("auth", "ssh_users"), "x"),
    ],
)
def test_a_typo_in_the_launcher_config_is_refused(path, value):
    broken = copy.deepcopy(LAUNCHER)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(broken))


def test_launcher_images_have_the_pinned_version():
    images = [LAUNCHER["docker"]["head_image"], LAUNCHER["docker"]["worker_image"]]
    images += [t["docker"]["worker_image"] for t in TYPES.values() if "docker" in t]
    assert len(images) == 3
    for image in images:
        assert image.split(":")[-1] == pinned("ray")
    assert "braintumor-ray-gpu:" in TYPES["gpu"]["docker"]["worker_image"]


def test_launcher_workers_are_spot_and_scale_and_the_head_is_not():
    for name, node in TYPES.items():
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert spot == (name != LAUNCHER["head_node_type"])
        if spot:
            assert 1 <= node["min_workers"] < node["max_workers"]
    assert sum(t.get("max_workers", 0) for t in TYPES.values()) <= LAUNCHER["max_workers"]


def test_launcher_nodes_ask_for_the_token_that_is_copied_to_them():
    options = " ".join(LAUNCHER["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options
    (path,) = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", options)
    assert str(Path(path).parent) in LAUNCHER["file_mounts"]
    (head,) = [c for c in LAUNCHER["head_start_ray_commands"] if "--head" in c]
    assert "--dashboard-host=127.0.0.1" in head


def test_launcher_nodes_get_no_other_secret_of_that_folder():
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    made = set(re.findall(r"> ~/\.braintumor/(\w+)", readme))
    assert made - set(LAUNCHER["rsync_exclude"]) == {"auth_token", "hash_key"}


@pytest.mark.parametrize("name", CONFIGS)
def test_ray_serve_and_our_settings_take_the_serve_config(name, tmp_path):
    from braintumor_ray.serving.app import build

    parsed = ServeDeploySchema.model_validate(CONFIGS[name])
    (application,) = parsed.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    token = tmp_path / "token"
    token.write_text("word", encoding="utf-8")
    built = build({**application.args, "token_file": str(token)})
    assert built._bound_deployment.name == "Front"


def test_services_load_the_bundle_that_the_readme_publishes():
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    (published,) = re.findall(r"cp -rT \S+ (\S+)", readme)
    bundles = {config["applications"][0]["args"]["bundle"] for config in CONFIGS.values()}
    assert bundles == {published}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_typo_in_a_serve_config_is_refused(name):
    from braintumor_ray.serving.settings import parse_settings

    broken = copy.deepcopy(CONFIGS[name])
    broken["application"] = broken.pop("applications")
    with pytest.raises(ValueError, match="application"):
        ServeDeploySchema.model_validate(broken)
    arguments = CONFIGS[name]["applications"][0]["args"]
    with pytest.raises(UsageError, match="max_batch"):
        parse_settings({**arguments, "max_batch": 16})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_service_that_leaves_loopback_asks_for_a_token(name):
    arguments = CONFIGS[name]["applications"][0]["args"]
    outside = CONFIGS[name]["http_options"]["host"] != "127.0.0.1"
    assert outside == ("token_file" in arguments) == (name == "rayservice.yaml")


def test_the_services_token_is_mounted_where_it_is_read():
    service = read_yaml(CLUSTER / "kuberay" / "rayservice.yaml")
    token = Path(CONFIGS["rayservice.yaml"]["applications"][0]["args"]["token_file"])
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        assert mounts[str(token.parent)] == "serve-token"


def test_all_nodes_of_the_service_have_the_environment_that_the_documents_ask_for():
    text = (PROJECT / "docs" / "serving.md").read_text(encoding="utf-8").replace("\n", " ")
    asked = re.search(r"## On a cluster(.*?) where the cluster starts", text)[1]
    wanted = dict(re.findall(r'`(RAY_SERVE_\w+)="?([^`"]+)', asked))
    assert len(wanted) == 4
    cluster = read_yaml(CLUSTER / "kuberay" / "rayservice.yaml")["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert wanted.items() <= {e["name"]: e["value"] for e in container["env"]}.items()


def test_ray_takes_the_runtime_environment_and_it_leaves_data_behind():
    found = read_yaml(CLUSTER / "runtime_env.yaml")
    RuntimeEnv(**{**found, "working_dir": None})
    assert (PROJECT / found["working_dir"]).resolve() == PROJECT
    assert {"/.venv/", "/.git/", "/runs/", "*.safetensors", "*.parquet"} <= set(found["excludes"])
    assert not [name for name in found["env_vars"] if re.search("TOKEN|KEY|SECRET", name)]
