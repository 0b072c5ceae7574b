"""The image: pinned, not root, and it holds what the manifests call."""

import re

from tests.cluster.manifests import (
    CLUSTER,
    PROJECT,
    WORKDIR,
    dockerfile_instructions,
    pinned,
    read_yaml,
)

INSTRUCTIONS = list(dockerfile_instructions(CLUSTER / "Dockerfile"))
KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "LABEL"}


def values(word):
    return [rest for name, rest in INSTRUCTIONS if name == word]


def test_instructions_are_known_and_the_base_is_ours_to_choose():
    assert {name for name, _ in INSTRUCTIONS} <= KNOWN
    before = INSTRUCTIONS[: [name for name, _ in INSTRUCTIONS].index("FROM")]
    assert before == [("ARG", f"RAY_VERSION={pinned('ray')}"), ("ARG", "ACCELERATOR=cpu")]
    assert values("FROM") == ["rayproject/ray:${RAY_VERSION}-py311-${ACCELERATOR}"]


def test_the_image_does_not_run_as_root():
    assert values("USER") == ["ray"]
    assert INSTRUCTIONS[-1] == ("USER", "ray")


def test_everything_that_is_installed_is_pinned():
    installs = [part for run in values("RUN") for part in run.split("&&") if "install" in part]
    assert len(installs) == 2
    for install in installs:
        assert re.search(r"pip install --no-cache-dir -c constraints\.txt ", install)
    assert any("ray.__version__ ==" in run for run in values("RUN"))


def test_what_is_copied_exists_and_reaches_the_builder():
    allowed = {
        line[1:]
        for line in (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = set()
    for copy in values("COPY"):
        *sources, _ = [word for word in copy.split() if not word.startswith("--")]
        copied.update(source.rstrip("/") for source in sources)
    assert copied == allowed
    for source in copied:
        assert (PROJECT / source).exists(), source


def test_jobs_lie_where_the_manifests_call_them():
    assert values("WORKDIR") == [WORKDIR.rstrip("/")]
    assert "--chown=ray:users jobs/ jobs/" in values("COPY")
    called = set()
    for path in [*(CLUSTER / "kuberay").glob("*.yaml"), CLUSTER / "kind" / "kustomization.yaml"]:
        called.update(re.findall(r"python (\S+)", path.read_text(encoding="utf-8")))
    assert called == {f"{WORKDIR}jobs/{name}.py" for name in ("train", "score_archive")}


def test_documents_call_jobs_where_the_image_has_them():
    text = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "docs").glob("*.md"))
    assert set(re.findall(r"python (/\S+/)jobs/", text)) == {WORKDIR}


def test_built_tags_are_the_pinned_version():
    documents = [CLUSTER / "Dockerfile", CLUSTER / "README.md"]
    for path in documents:
        tags = re.findall(r"braintumor-ray(?:-gpu)?:([\w.]+)", path.read_text(encoding="utf-8"))
        assert tags
        assert set(tags) == {pinned("ray")}, path.name


def test_the_test_tools_are_in_the_extra_and_pinned():
    extra = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    for package in ("jsonschema", "pyyaml"):
        assert re.search(rf'^  "{package}>=', extra, re.MULTILINE)
    assert pinned("jsonschema")
    assert pinned("PyYAML")
    assert read_yaml(CLUSTER / "kuberay" / "operator-values.yaml")["featureGates"][-1] == {
        "name": "RayCronJob",
        "enabled": True,
    }
