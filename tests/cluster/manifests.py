"""Reading what lies in `cluster/`, and a CRD as a strict JSON schema."""

import re
import shlex
from pathlib import Path

import typer
import typer.main
import yaml

from braintumor_ray.cli import app

PROJECT = Path(__file__).resolve().parent.parent.parent
CLUSTER = PROJECT / "cluster"
WORKDIR = "/home/ray/braintumor/"  # the Dockerfile's; a test compares


def read_yaml(path):
    return yaml.load(path.read_text(encoding="utf-8"), yaml.SafeLoader)


def pinned(package):
    text = (PROJECT / "constraints.txt").read_text(encoding="utf-8")
    (version,) = re.findall(rf"^{re.escape(package)}==([^\s;]+)", text, re.MULTILINE)
    return version


def strict_schema(node):
    """A CRD's OpenAPI schema for jsonschema; unknown fields are refused, as by the API server."""
    if isinstance(node, list):
        return [strict_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _strict_child(key, value) for key, value in node.items()}
    closed = "properties" in node and "additionalProperties" not in node
    if closed and not node.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    if node.get("nullable"):
        found["type"] = [node["type"], "null"]
    return found


def _strict_child(key, value):
    if key == "properties":  # its keys are names of fields, not keywords
        return {name: strict_schema(schema) for name, schema in value.items()}
    return strict_schema(value)


def crd_schema(folder, kind):
    crd = yaml.load(
        (folder / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8"),
        getattr(yaml, "CSafeLoader", yaml.SafeLoader),  # a megabyte each
    )
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = strict_schema(version["schema"]["openAPIV3Schema"])
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def cluster_spec(manifest):
    spec = manifest["spec"]
    if manifest["kind"] == "RayCronJob":
        spec = spec["jobTemplate"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups(manifest):
    """Name and group of head and workers."""
    spec = cluster_spec(manifest)
    yield "head", spec["headGroupSpec"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group


def entrypoint(manifest):
    spec = manifest["spec"]
    return spec.get("jobTemplate", spec)["entrypoint"]


USAGE_ERROR = typer.BadParameter.__base__  # of the click that typer uses, its own or the package


def check_entrypoint(words):
    """An entrypoint of ours: the file or command exists, and every option and argument is taken.

    A job passes its arguments on to one command.

    Raises:
        AssertionError: no such file or command.
        USAGE_ERROR: an option or argument that the command does not know, or one too few.
    """
    if words[0] == "python":
        path = Path(words[1].removeprefix(WORKDIR))
        assert path.parent == Path("jobs"), f"not one of our jobs: {words[1]}"
        assert (PROJECT / path).is_file(), f"{path} does not exist"
        words = ["braintumor-ray", command_of(PROJECT / path), *words[2:]]
    assert words[0] == "braintumor-ray", f"not a command of ours: {words}"
    command = typer.main.get_command(app).commands.get(words[1])
    assert command is not None, f"no such command: {words[1]}"
    command.make_context(words[1], list(words[2:]))


def command_of(job):
    """The command that a job's file calls: app(["NAME", *sys.argv[1:]])."""
    found = re.findall(
        r"""app\(\["([\w-]+)", \*sys\.argv\[1:\]\]\)""", job.read_text(encoding="utf-8")
    )
    assert len(found) == 1, f"{job.name} does not pass its arguments on to one command"
    return found[0]


def console_commands(markdown):
    """Commands in the console and sh blocks of a document, as words; continued lines are joined."""
    for block in re.findall(r"```(?:console|sh)\n(.*?)```", markdown, re.DOTALL):
        text = block.replace("\\\n", " ")
        for line in text.splitlines():
            if line.startswith("$ ") or ("$ " not in block and line.strip()):
                yield shlex.split(line.removeprefix("$ "), comments=True)


def dockerfile_instructions(path):
    """(instruction, argument) pairs; comments gone, continued lines joined."""
    lines = [
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    for line in filter(str.strip, joined.splitlines()):
        word, _, rest = line.strip().partition(" ")
        yield word.upper(), re.sub(r"\s+", " ", rest)
