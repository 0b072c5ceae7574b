"""The KubeRay manifests: valid against the CRDs, and right in what no schema says."""

import copy
import re
import shlex
import shutil
import subprocess

import jsonschema
import pytest
import yaml

from tests.cluster.manifests import (
    CLUSTER,
    PROJECT,
    check_entrypoint,
    cluster_spec,
    crd_schema,
    entrypoint,
    groups,
    pinned,
    read_yaml,
)

FILES = sorted((CLUSTER / "kuberay").glob("ray*.yaml"))
MANIFESTS = {path.stem: read_yaml(path) for path in FILES}
README = (CLUSTER / "README.md").read_text(encoding="utf-8")
GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def validators():
    folder = PROJECT.parent / "shared" / "schemas" / "kuberay"
    if not folder.is_dir():
        pytest.skip(f"the CRDs of KubeRay are not at {folder}")
    kinds = ("RayCluster", "RayJob", "RayCronJob", "RayService")
    return {kind: jsonschema.Draft202012Validator(crd_schema(folder, kind)) for kind in kinds}


def errors(validators, manifest):
    found = validators[manifest["kind"]].iter_errors(manifest)
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in found]


def test_all_four_kinds_are_there():
    assert {m["kind"] for m in MANIFESTS.values()} == {
        "RayCluster",
        "RayJob",
        "RayCronJob",
        "RayService",
    }


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_validate_against_the_crds(name, validators):
    assert MANIFESTS[name]["apiVersion"] == "ray.io/v1"
    assert errors(validators, MANIFESTS[name]) == []


def break_name(spec):
    spec["headGroupSpec"]["rayStartParam"] = {}


def break_deep_name(spec):
    container = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["resources"]["limit"] = {}


def break_type(spec):
    spec["workerGroupSpecs"][0]["minReplicas"] = "1"


def break_enum(spec):
    spec["authOptions"]["mode"] = "tokens"


def break_quantity(spec):
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = "8 Gi"


def break_required(spec):
    del spec["headGroupSpec"]["template"]


@pytest.mark.parametrize(
    "damage",
    [break_name, break_deep_name, break_type, break_enum, break_quantity, break_required],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_typo_is_refused(name, damage, validators):
    manifest = copy.deepcopy(MANIFESTS[name])
    damage(cluster_spec(manifest))
    assert len(errors(validators, manifest)) == 1


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl renders it, and is not here")
def test_the_variant_for_kind_validates_and_asks_for_no_gpu(validators):
    done = subprocess.run(
        ["kubectl", "kustomize", str(CLUSTER / "kind")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    rendered = [m for m in yaml.safe_load_all(done.stdout) if m["apiVersion"] == "ray.io/v1"]
    assert {m["kind"] for m in rendered} == {"RayCluster", "RayCronJob"}
    for manifest in rendered:
        assert errors(validators, manifest) == []
        assert [name for name, _ in groups(manifest)] == ["head", "decode"]
        assert GPU not in yaml.safe_dump(manifest)
    (nightly,) = [m for m in rendered if m["kind"] == "RayCronJob"]
    check_entrypoint(shlex.split(entrypoint(nightly)))


@pytest.mark.parametrize("name", MANIFESTS)
def test_versions_are_the_pinned_one(name):
    ray = pinned("ray")
    assert cluster_spec(MANIFESTS[name])["rayVersion"] == ray
    for _, group in groups(MANIFESTS[name]):
        for container in group["template"]["spec"]["containers"]:
            assert container["image"].split(":")[-1] == ray


@pytest.mark.parametrize("name", MANIFESTS)
def test_ray_asks_for_a_token_and_containers_are_unprivileged(name):
    spec = cluster_spec(MANIFESTS[name])
    assert spec["authOptions"] == {"mode": "token", "secretName": "braintumor-ray-token"}
    for _, group in groups(MANIFESTS[name]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_container_says_what_it_needs_and_where_it_runs(name):
    for group_name, group in groups(MANIFESTS[name]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        gpu = group_name == "gpu"
        for part in ("requests", "limits"):
            wanted = container["resources"][part]
            assert {"cpu", "memory"} <= set(wanted)
            assert (GPU in wanted) == gpu
        assert container["image"].startswith("braintumor-ray-gpu:" if gpu else "braintumor-ray:")
        assert any("gpu" in key for key in pod["nodeSelector"]) == gpu
        assert ("/shared", "shared") in {
            (m["mountPath"], m["name"]) for m in container["volumeMounts"]
        }
        store = int(group["rayStartParams"].get("object-store-memory", 0))
        assert store <= 0.4 * gibibytes(container["resources"]["limits"]["memory"]) * 2**30


def gibibytes(quantity):
    return int(quantity.removesuffix("Gi"))


@pytest.mark.parametrize("name", MANIFESTS)
def test_workers_may_be_spot_nodes_and_the_head_may_not(name):
    for group_name, group in groups(MANIFESTS[name]):
        tolerated = {t["key"] for t in group["template"]["spec"].get("tolerations", [])}
        assert ("spot" in tolerated) == (group_name != "head")


@pytest.mark.parametrize("name", MANIFESTS)
def test_workers_scale_and_the_head_does_no_work(name):
    spec = cluster_spec(MANIFESTS[name])
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        # At least one: what a job asks of the cluster is asked before the autoscaler moves.
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["minReplicas"] < group["maxReplicas"]


def secrets(node):
    """(name, key or None) of every secret that a manifest refers to."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "secretKeyRef":
                yield value["name"], value["key"]
            elif key == "secretRef":
                yield value["name"], None
            elif key == "secretName" and isinstance(value, str):
                yield value, None
            else:
                yield from secrets(value)
    elif isinstance(node, list):
        for item in node:
            yield from secrets(item)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_readme_makes_every_secret_and_no_value_stands_in_a_manifest(name):
    made = dict(re.findall(r"create secret generic (\S+)((?:.|\\\n)*?)(?=\n\S|```)", README))
    for secret, key in secrets(MANIFESTS[name]):
        assert secret in made, secret
        assert key is None or f"{key}=" in made[secret], f"{secret}: {key}"
    assert "auth_token=" in made["braintumor-ray-token"]  # the key that KubeRay reads
    text = (CLUSTER / "kuberay" / f"{name}.yaml").read_text(encoding="utf-8")
    assert not re.search(r"name: \w*(TOKEN|KEY|SECRET|PASSWORD)\w*, value:", text)


def test_claims_are_of_the_shared_volume():
    storage = read_yaml(CLUSTER / "kuberay" / "shared-storage.yaml")
    assert storage["spec"]["accessModes"] == ["ReadWriteMany"]
    for manifest in MANIFESTS.values():
        for _, group in groups(manifest):
            volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
            claim = volumes["shared"]["persistentVolumeClaim"]["claimName"]
            assert claim == storage["metadata"]["name"]


@pytest.mark.parametrize("name", [n for n in MANIFESTS if "job" in n])
def test_jobs_exist_and_take_what_they_are_given(name):
    words = shlex.split(entrypoint(MANIFESTS[name]))
    check_entrypoint(words)


def test_one_night_ends_before_the_next_and_a_finding_is_not_tried_again():
    template = MANIFESTS["raycronjob-score"]["spec"]["jobTemplate"]
    assert template["activeDeadlineSeconds"] < 86_400
    assert template["backoffLimit"] == 0
    assert template["shutdownAfterJobFinishes"] is True


def test_names_do_not_clash():
    """KubeRay names services after them: two of one name would share NAME-head-svc."""
    names = [m["metadata"].get("name") for m in MANIFESTS.values() if "name" in m["metadata"]]
    assert len(set(names)) == len(names) == 3


def test_kuberay_finds_the_port_of_the_service_on_the_head():
    """KubeRay 1.7 makes no NAME-serve-svc where the head has no port named `serve`."""
    spec = MANIFESTS["rayservice"]["spec"]
    serve = yaml.safe_load(spec["serveConfigV2"])
    (head,) = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert ports["serve"] == serve["http_options"]["port"]


def test_kustomizations_list_files_that_exist():
    for folder in (CLUSTER / "kuberay", CLUSTER / "kind"):
        for resource in read_yaml(folder / "kustomization.yaml")["resources"]:
            assert (folder / resource).exists(), resource
